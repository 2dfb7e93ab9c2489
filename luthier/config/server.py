"""Section `rollouts.server`: answers of an online run drawn by a server, over the API that OpenAI's servers began."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from luthier.config.base import Spec
from luthier.config.secrets import says_secret


class ServerSpec(Spec):
    """Which server draws answers, which weights it has, and how far it is believed."""

    url: str
    """Address of the API, such as http://127.0.0.1:8000/v1. It is sent token ids (POST /completions)."""
    model: str | None = None
    """Name of the served base; null = the only model that the server lists."""
    api_key_env: str = "LUTHIER_SERVER_API_KEY"
    """Name of the environment variable that holds the key, if the server wants one. The key itself stands nowhere."""
    weights: Literal["base", "adapter"] = "base"
    """What the server answers with. base: the base, from the first round to the last; answers are then weighed by how
    likely the policy makes them now, and max_kl ends the run when that goes too far (grpo, gkd). adapter: the adapter
    as it stands, which the server loads from the run's folder before each round (POST /load_lora_adapter, as vLLM
    has it), so it must see that folder."""
    tolerance: Annotated[float, Field(gt=0)] = 0.1
    """An answer whose log-probabilities, as the server tells them, are farther than this from the trainer's own under
    the same weights (mean difference, nats a token) is left out."""
    max_kl: Annotated[float, Field(gt=0)] = 0.1
    """weights: base. How far the policy may have moved from the base, as KL(base || policy) in nats a token of a
    round's answers; beyond it they say too little about the policy, and the run stops."""
    timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """An answer that takes longer is left out."""
    requests: Annotated[int, Field(ge=1, le=256)] = 16
    """Answers asked for at the same time."""

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no address of a server: expected such as http://127.0.0.1:8000/v1")
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ValueError(
                "an address with a user, a query or a fragment would stand in manifests and logs: give the plain "
                "address, and a key through the environment variable that api_key_env names"
            )
        if parts.port == 0:
            raise ValueError(f"{url!r} has the port 0")
        return url.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _is_masked(cls, name: str) -> str:
        if not says_secret(name):
            raise ValueError(
                f"{name!r} does not say that it is a secret, so its value would not be masked in what is printed: "
                "name the variable such as MY_SERVER_API_KEY"
            )
        return name

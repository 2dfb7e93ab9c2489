"""A small client of a server's API: one JSON question, one JSON answer, and what went wrong in words.

What is wrong with one answer (time, a broken connection, 5xx, no JSON) is `Lost`: it costs what was asked for. What
would be wrong with every answer (a refused key, an unknown path or model, a request that the server does not take) is a
ServerRefused, with the next move. The key comes from the environment at every call, goes into one header, and is masked
in whatever the server says; redirects are not followed, so it goes nowhere else.
"""

from __future__ import annotations

import http.client
import json
import os
import time
from typing import Any
from urllib.parse import urlsplit

from luthier.config.secrets import MASK, redact
from luthier.config.server import ServerSpec
from luthier.errors import ConfigError

_LONGEST_BYTES = 64 << 20
_PASSES = (408, 425, 429)
"""Statuses below 500 that another moment may mend."""

HANDED_OVER = "luthier-"
"""How the names begin under which a server is handed adapters."""


class Lost(Exception):
    """One answer did not come; str() says why, without figures that differ from answer to answer."""


class ServerRefused(ConfigError):
    """The server would refuse every other question as well. status: HTTP's."""

    def __init__(self, message: str, status: int, *, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class Api:
    """Asks the server of a run. Safe to be asked by several threads at once."""

    def __init__(self, spec: ServerSpec) -> None:
        self.spec, self.parts = spec, urlsplit(spec.url)

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The parsed answer to GET (no body) or POST of `path`. Raises Lost, ServerRefused."""
        raw = self.tell(path, body)
        try:
            return json.loads(raw)
        except (ValueError, RecursionError):
            raise Lost("what the server answered is no JSON") from None

    def tell(self, path: str, body: dict[str, Any] | None = None) -> bytes:
        """The same, unread: for what is told the server and not asked."""
        key = os.environ.get(self.spec.api_key_env, "")
        status, raw = self._exchange(path, body, key)
        said = raw[:300].decode("utf-8", "replace").strip()
        said = redact(said.replace(key, MASK) if key else said)
        if status >= 500 or status in _PASSES:
            raise Lost(f"the server answered {status}: {said}" if said else f"the server answered {status}")
        if status != 200:
            raise ServerRefused(
                f"rollouts.server: {self.spec.url}{path} answered {status}: {said}", status, hint=self._move(status)
            )
        return raw

    def _exchange(self, path: str, body: dict[str, Any] | None, key: str) -> tuple[int, bytes]:
        """(status, answer). A connection each: servers close idle ones, and a broken one costs one answer."""
        limit_s = self.spec.timeout_s
        kind = http.client.HTTPSConnection if self.parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(self.parts.hostname or "", self.parts.port, timeout=limit_s)
        ends = time.monotonic() + limit_s
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        try:
            text = None if body is None else json.dumps(body)
            connection.request("GET" if body is None else "POST", self.parts.path + path, text, headers)
            reply, read = connection.getresponse(), bytearray()
            while part := reply.read1(1 << 16):
                read += part
                if time.monotonic() > ends:
                    raise TimeoutError
                if len(read) > _LONGEST_BYTES:
                    raise Lost(f"the server's answer is longer than {_LONGEST_BYTES >> 20} MiB")
            return reply.status, bytes(read)
        except TimeoutError:
            raise Lost(f"no answer within {limit_s:g} s (rollouts.server.timeout_s)") from None
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a header that no key may be
            words = type(error).__name__ if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            raise Lost(f"the connection failed: {redact(words)}") from None
        finally:
            connection.close()

    def _move(self, status: int) -> str:
        if status in (401, 403):
            name = self.spec.api_key_env
            return f"set the environment variable {name} to the server's key" + (
                "; the one that is set is refused" if os.environ.get(name) else ""
            )
        if 300 <= status < 400:
            return "rollouts.server.url must be the address itself: a redirect is not followed"
        if status == 404:
            return "rollouts.server.url ends with the API's version, such as /v1, and rollouts.server.model is served"
        return "see what the server says; it is asked for tokens (prompt: ids, seed, logprobs, return_token_ids)"


def served_model(api: Api) -> str:
    """The name to ask for. Raises ConfigError where the server does not answer, or does not serve it."""
    spec = api.spec
    try:
        listed = api.ask("/models")
        names = [str(one["id"]) for one in listed["data"]]
    except Lost as lost:
        raise ConfigError(
            f"rollouts.server: {spec.url} does not answer: {lost}", hint="start the server, or mend rollouts.server.url"
        ) from None
    except (KeyError, TypeError):
        raise ConfigError(
            f"rollouts.server: {spec.url}/models lists no models",
            hint="give the address of an OpenAI-compatible API, such as http://127.0.0.1:8000/v1",
        ) from None
    bases = [name for name in names if not name.startswith(HANDED_OVER)]  # not what a killed run has left there
    shown = redact(", ".join(names[:8])) or "none"
    if spec.model is None and len(bases) != 1:
        raise ConfigError(
            f"rollouts.server: {spec.url} serves {len(names)} models: {shown}",
            hint="name the base among them in rollouts.server.model",
        )
    if spec.model is not None and spec.model not in names:
        raise ConfigError(
            f"rollouts.server.model: {spec.url} does not serve {spec.model!r}; it serves {shown}",
            hint="name one of them, or start the server with this base",
        )
    return spec.model or bases[0]

"""The server that draws an online run's answers (rollouts.server): is it there, and what it answers with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from luthier.adapters.handle import AdaptedModel
from luthier.adapters.peft_files import WEIGHTS_FILE, save_adapter
from luthier.config.load import Project
from luthier.config.server import ServerSpec
from luthier.errors import TrainError
from luthier.jobs import console
from luthier.jobs.objective import AdaptersOff
from luthier.jobs.session import Session
from luthier.losses.head import policy_logps
from luthier.rollouts.api import HANDED_OVER, Api, Lost, ServerRefused, served_model
from luthier.rollouts.round import Answer
from luthier.rollouts.rows import AnswerRows
from luthier.rollouts.server import ServerSource, Weights, Words
from luthier.store.publish import digest_file
from luthier.types import Batch, Message


def check_server(project: Project) -> None:
    """Raises ConfigError, before any weight is read, for a server that does not answer or serves something else."""
    server = project.spec.rollouts.server
    if server is not None:
        console.line(f"answers of the rounds come from {server.url}, model {served_model(Api(server))}")


def open_server(session: Session, server: ServerSpec, adapted: AdaptedModel, laid: AnswerRows) -> ServerSource:
    """The source of a run's answers."""
    spec, codec, model = session.project.spec.rollouts, session.opened.codec, adapted.model
    api = Api(server)
    policy = _Logps(laid, model, spec.temperature)
    if server.weights == "base":
        name = served_model(api)
        weights = Weights(lambda: name, _Logps(laid, AdaptersOff(adapted), spec.temperature), policy)
    else:
        handed = _HandedOver(api, adapted, session.work / "served", session.opened.base.name)
        weights = Weights(handed.renew, policy, policy)
    end_id = codec.encode_answer([Message(role="user", content="?")], "!")[0][-1]
    encode = lambda text: codec.tokenizer.encode(text, specials=False)  # noqa: E731
    words = Words(encode, codec.parse, frozenset(codec.stop_ids), end_id, session.opened.tokenizer.vocab_size)
    return ServerSource(spec, api, words, weights, console.warn)


class _Logps:
    """Log-probabilities of answers' tokens under a model, at the temperature of the sampling."""

    def __init__(self, laid: AnswerRows, model: Any, temperature: float) -> None:
        self.laid, self.model, self.temperature = laid, model, temperature

    def __call__(self, answers: Sequence[Answer]) -> dict[str, tuple[float, ...]]:
        return self.laid.told(answers, self._of)

    def _of(self, batch: Batch) -> Any:
        return policy_logps(self.model, self.model.hidden(batch), batch.targets_K, self.temperature)[0]


class _HandedOver:
    """The adapter as it stands, on the server under a name that its weights give. One at a time is kept there."""

    def __init__(self, api: Api, adapted: AdaptedModel, folder: Path, base_name: str) -> None:
        self.api, self.adapted, self.folder, self.base_name, self.name = api, adapted, folder, base_name, ""

    def renew(self) -> str:
        """Hands the adapter over, unless the server has it. Raises TrainError when the server does not take it."""
        fresh = self.folder / "fresh"
        self._save(fresh)
        name = f"{HANDED_OVER}{digest_file(fresh / WEIGHTS_FILE)[:12]}"
        if name == self.name:
            return name
        for old in filter(None, (self.name, name)):  # a run that goes on may find its own adapter there
            self._drop(old)
        os.replace(fresh, self.folder / name)
        body = {"lora_name": name, "lora_path": str((self.folder / name).resolve())}
        try:
            self.api.tell("/load_lora_adapter", body)
        except (Lost, ServerRefused) as error:
            raise TrainError(
                f"rollouts.server.weights: the server does not take the adapter: {error}",
                hint="vLLM needs --enable-lora, VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, --max-lora-rank of at least "
                "adapter.lora_r, and to see the run's folder; or rollouts.server.weights: base",
            ) from None
        self.name = name
        return name

    def _save(self, folder: Path) -> None:
        model, head = self.adapted.model, getattr(self.adapted.model, "value_head", None)
        shutil.rmtree(folder, ignore_errors=True)
        if head is None:
            save_adapter(self.adapted, folder, self.base_name)
            return
        del model.value_head  # it is no part of what answers
        try:
            save_adapter(self.adapted, folder, self.base_name)
        finally:
            model.value_head = head

    def _drop(self, name: str) -> None:
        with suppress(Lost, ServerRefused):  # it has none of this name; if it is gone, loading the next one says so
            self.api.tell("/unload_lora_adapter", {"lora_name": name})
        shutil.rmtree(self.folder / name, ignore_errors=True)

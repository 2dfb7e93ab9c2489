"""llama.cpp as an independent reader of our GGUF files, through the optional wheel `xllamacpp`.

The wheel offers llama.cpp's own server inside the process (loopback, random port, random key). What a user's runner
would compute is therefore measured by the runner itself: token ids of a text, a rendered chat, log-probabilities,
answers. Endpoints: llama.cpp tools/server/README.md (/tokenize, /apply-template, /completion with n_probs).
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from luthier.errors import ArtifactError
from luthier.types import Completion, Message, Progress

try:  # optional dependency: a wheel with llama.cpp inside
    import xllamacpp
except ImportError:
    xllamacpp = None

_TIMEOUT_S = 600
_FORCE = 1e9


def missing_reason() -> str | None:
    """Why llama.cpp cannot be asked here, or None when it can."""
    return None if xllamacpp is not None else "the wheel xllamacpp is not installed (pip install --no-deps xllamacpp)"


class LlamaCpp:
    """One GGUF file loaded by llama.cpp. Use as a context manager: leaving it frees the model.

    num_ctx: tokens of context per request; parallel: requests that run side by side.
    """

    def __init__(self, path: Path, *, num_ctx: int, num_threads: int | None = None, parallel: int = 1) -> None:
        if xllamacpp is None:
            raise ArtifactError(f"llama.cpp is not here: {missing_reason()}")
        self.path, self.parallel = Path(path), parallel
        self._key = secrets.token_urlsafe(24)
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = num_ctx * parallel
        params.n_parallel = parallel
        params.cpuparams.n_threads = num_threads or os.cpu_count() or 1
        params.cpuparams_batch.n_threads = num_threads or os.cpu_count() or 1
        params.hostnames = ["127.0.0.1"]
        params.api_keys = [self._key]
        params.ui = False
        params.warmup = False
        params.verbosity = -1
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise ArtifactError(f"{path}: llama.cpp cannot load it ({error})") from None
        self._address: str = self._server.listening_address.removeprefix("http://")
        self._plain_token = self.tokenize("a", specials=False)[-1]

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, *error: object) -> None:
        self._server = None

    def tokenize(self, text: str, *, specials: bool = True) -> list[int]:
        """Token ids of `text`; control tokens written in it count as such when `specials`. No BOS is added."""
        answer = self._post("/tokenize", {"content": text, "add_special": False, "parse_special": specials})
        return answer["tokens"]

    def chat_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids that llama.cpp's chat makes of a conversation: the file's template, BOS as the file says."""
        prompt = self._post("/apply-template", {"messages": list(messages)})["prompt"]  # without the BOS it will add
        return self._post("/tokenize", {"content": prompt, "add_special": True, "parse_special": True})["tokens"]

    def top_logprobs(self, ids: Sequence[int], num_top: int) -> tuple[np.ndarray, np.ndarray]:
        """The `num_top` likeliest next tokens after `ids`: (token ids, natural log-probabilities), likeliest first."""
        # The server holds figures back when the sampled token ends the answer or is half a character. So a plain token
        # is sampled by force; the figures come from the raw logits, which a bias does not touch (tested).
        bias = [[self._plain_token, _FORCE]]
        answer = self._complete(ids, max_new_tokens=1, n_probs=num_top, temperature=0.0, logit_bias=bias)
        top = answer["completion_probabilities"][0]["top_logprobs"]
        return np.array([t["id"] for t in top], np.int64), np.array([t["logprob"] for t in top], np.float64)

    def complete(
        self, ids: Sequence[int], *, max_new_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> tuple[list[int], bool]:
        """(new token ids without the stop token, True when a stop token came before the cap)."""
        answer = self._complete(
            ids, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, top_k=0, top_p=1.0, min_p=0.0
        )
        return answer["tokens"], answer["stop_type"] == "eos"

    def _complete(self, ids: Sequence[int], *, max_new_tokens: int, **settings: Any) -> dict[str, Any]:
        body = {"prompt": list(ids), "n_predict": max_new_tokens, "cache_prompt": True, "return_tokens": True}
        return self._post("/completion", body | settings)

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        connection = http.client.HTTPConnection(self._address, timeout=_TIMEOUT_S)  # never through a proxy
        try:
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
            connection.request("POST", path, json.dumps(body), headers)
            reply = connection.getresponse()
            content = reply.read()
        finally:
            connection.close()
        if reply.status != http.client.OK:
            raise ArtifactError(
                f"llama.cpp answered {reply.status} to {path}: {content[:200].decode(errors='replace')}"
            )
        return json.loads(content)


class LlamaCppSampler:
    """types.Sampler over a loaded GGUF file: the artefact itself as an arm of the evaluation."""

    def __init__(
        self,
        runner: LlamaCpp,
        *,
        encode: Callable[[Sequence[Message]], Sequence[int]],
        decode: Callable[[Sequence[int]], str],
        stop_ids: frozenset[int],
        name: str,
    ) -> None:
        self.name = name
        self._runner, self._encode, self._decode, self._stop_ids = runner, encode, decode, stop_ids

    def sample(
        self,
        prompts: Sequence[Sequence[Message]],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> list[Completion]:
        """One completion a prompt, in order; prompt i is sampled with seed + i."""

        def answer(numbered: tuple[int, Sequence[Message]]) -> Completion:
            index, messages = numbered
            ids, stopped = self._runner.complete(
                self._encode(messages), max_new_tokens=max_new_tokens, temperature=temperature, seed=seed + index
            )
            return self._completion(ids, stopped)

        done: list[Completion] = []
        with ThreadPoolExecutor(self._runner.parallel) as pool:
            for completion in pool.map(answer, enumerate(prompts)):
                done.append(completion)
                if progress is not None:
                    progress(len(done), len(prompts))
        return done

    def _completion(self, ids: list[int], stopped: bool) -> Completion:
        cut = next((index for index, token in enumerate(ids) if token in self._stop_ids), None)
        if cut is not None:
            ids, stopped = ids[:cut], True
        return Completion(text=self._decode(ids), ids=tuple(ids), finish="stop" if stopped else "length")

"""Answers drawn by a server (rollouts.server), and how far it is believed.

The server is asked for token ids and answers with tokens and their log-probabilities; it knows nothing of the trainer.
What an answer is learnt under is never what the server says of it, but the trainer's own log-probabilities under the
weights that the server is said to have: of the base, or of the adapter that it was just handed. So
  - an answer whose told log-probabilities are others (other weights, another temperature, a rounding too coarse) is
    left out, by rollouts.server.tolerance;
  - a server that keeps the base's weights draws from another distribution than the policy's. The ratio in the losses of
    `losses/policy.py` is then p / p of the base: the importance weight of the answer, clipped as ever. How far the
    policy has gone is KL(base || policy), estimated by k3 (arXiv 2402.03300, equation 4) on the answers of the round;
    beyond rollouts.server.max_kl the run stops, because clipped weights would hold what is left.
One request an answer, each with its own seed, so that what goes wrong costs one answer.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from luthier.config.rollouts import RolloutsSpec
from luthier.errors import TrainError
from luthier.rollouts.api import Api, Lost
from luthier.rollouts.round import LOST, Answer
from luthier.types import EncodedRow

_AS_ID = re.compile(r"token_id:(\d+)")
_LEAST = 1e4
_ROUNDING = 1e-3  # a log-probability that is above 0 by less is a rounding

Logps = Callable[[Sequence[Answer]], dict[str, tuple[float, ...]]]
"""answers -> by name, the trainer's own log-probability of each token."""


@dataclass(frozen=True)
class Words:
    """What turns texts and tokens into each other here. vocab_size: ids that the model knows; end_id: what ends an
    answer, where the server tells none.
    """

    encode: Callable[[str], Sequence[int]]
    parse: Callable[[Sequence[int]], str]
    stop_ids: frozenset[int]
    end_id: int
    vocab_size: int


@dataclass(frozen=True)
class Weights:
    """What the server answers with. renew: makes it so before a round and gives the name to ask for; served, policy:
    log-probabilities under those weights, and of the model in training.
    """

    renew: Callable[[], str]
    served: Logps
    policy: Logps


class ServerSource:
    """See `draw.Source`. lost: how often each thing went wrong, over this process."""

    def __init__(
        self, spec: RolloutsSpec, api: Api, words: Words, weights: Weights, notice: Callable[[str], None]
    ) -> None:
        assert spec.server is not None
        self.spec, self.server, self.api, self.words, self.weights = spec, spec.server, api, words, weights
        self.notice, self.lost, self.told = notice, Counter[str](), set[str]()

    def draw(self, prompts: Sequence[EncodedRow], seed: int, between: Callable[[], None]) -> list[Answer]:
        """Those that did not come have no tokens, and say why. Raises TrainError when none came that can be learnt
        from, or when the policy has gone too far; ConfigError for what the server refuses for good.
        """
        model = self.weights.renew()
        asked = [(row, number) for row in prompts for number in range(self.spec.answers)]
        pool = ThreadPoolExecutor(max_workers=self.server.requests)
        try:
            waiting = [pool.submit(self._one, model, row, number, seed) for row, number in asked]
            while wait(waiting, timeout=0.2).not_done:
                between()
            answers = [one.result() for one in waiting]
        finally:  # nobody waits for what is on its way when the work ends here
            pool.shutdown(wait=False, cancel_futures=True)
        return self._believed(answers)

    def _one(self, model: str, row: EncodedRow, number: int, seed: int) -> Answer:
        digest = hashlib.sha256(f"{seed}/{row.row_id}/{number}".encode()).digest()
        body = {
            "model": model, "prompt": list(row.ids), "max_tokens": self.spec.max_new_tokens,
            "temperature": self.spec.temperature, "top_p": 1.0, "top_k": -1, "min_p": 0.0,
            "seed": int.from_bytes(digest[:4], "big") >> 1, "n": 1, "logprobs": 1, "return_token_ids": True,
            "stop_token_ids": sorted(self.words.stop_ids),
        }  # fmt: skip
        try:
            ids, logps, finish = read_completion(self.api.ask("/completions", body), model, self.words, self.spec)
        except Lost as lost:
            return Answer(row.row_id, number, (), (), LOST, "", error=str(lost))
        return Answer(row.row_id, number, ids, (), finish, self.words.parse(ids), server_logps=logps)

    def _believed(self, answers: list[Answer]) -> list[Answer]:
        """With the trainer's own log-probabilities, under which they are learnt from."""
        came = [answer for answer in answers if not answer.error]
        own = self.weights.served(came)
        gaps = {answer.name: _gap(answer.server_logps, own[answer.name]) for answer in came if answer.server_logps}
        checked = [self._checked(answer, own, gaps) for answer in answers]
        self.lost.update(answer.error for answer in checked if answer.error)
        self._say_unchecked(len(came) - len(gaps), len(came))
        good = [answer for answer in checked if not answer.error]
        if not good and checked:
            error, times = Counter(answer.error for answer in checked).most_common(1)[0]
            apart = f" (on average {fmean(gaps.values()):.3g} nats a token)" if gaps else ""
            raise TrainError(
                f"no answer of a round came from {self.server.url}; {times} of {len(checked)} times: {error}{apart}",
                hint="see the server's own log; the rounds that are kept stand: run the same command again when it "
                "answers with this base",
            )
        if self.server.weights == "base":
            self._near(good)
        return checked

    def _checked(self, answer: Answer, own: dict[str, tuple[float, ...]], gaps: dict[str, float]) -> Answer:
        if answer.error:
            return answer
        if gaps.get(answer.name, 0.0) > self.server.tolerance:
            words = (
                "log-probabilities farther from the trainer's own under the same weights than rollouts.server.tolerance"
            )
            return replace(answer, finish=LOST, error=f"{words} {self.server.tolerance:g}", logps=own[answer.name])
        return replace(answer, logps=own[answer.name])

    def _near(self, answers: list[Answer]) -> None:
        """Says, and then refuses, that the policy is far from what the answers were drawn from."""
        now, most = self.weights.policy(answers), self.server.max_kl
        moved = [a - b for one in answers for a, b in zip(now[one.name], one.logps, strict=True)]
        apart = fmean(math.expm1(min(x, 50.0)) - x for x in moved)
        words = (
            f"the policy is {apart:.3g} nats a token away from the base, whose weights {self.server.url} answers with"
        )
        hint = (
            "rollouts.server.weights: adapter hands it the adapter before each round; or end here (train.max_steps), "
            "build, and go on with that build as base and on the server"
        )
        if apart > most:
            raise TrainError(f"{words}: more than rollouts.server.max_kl {most:g}", hint=hint)
        if apart > most / 2:
            self._say("near", f"{words}: the run stops at rollouts.server.max_kl {most:g} ({hint})")

    def _say_unchecked(self, unchecked: int, came: int) -> None:
        if unchecked:
            self._say(
                "unchecked",
                f"{self.server.url} told no log-probabilities of {unchecked} of {came} answers: nobody can check "
                "that it answers with the weights it is said to have",
            )

    def _say(self, what: str, words: str) -> None:
        if what not in self.told:
            self.told.add(what)
            self.notice(words)

    def figures(self, answers: Sequence[Answer]) -> dict[str, float]:
        """Of a round: answers that were lost, those that nobody could check, and how far the server's log-probabilities
        are from the trainer's own (mean, nats a token; none where none was checked).
        """
        gaps = [_gap(answer.server_logps, answer.logps) for answer in answers if answer.server_logps]
        unchecked = sum(not answer.server_logps and not answer.error for answer in answers)
        lost = sum(answer.finish == LOST for answer in answers)
        return {"server_lost": float(lost), "server_unchecked": float(unchecked)} | (
            {"server_gap": fmean(gaps)} if gaps else {}
        )


def _gap(told: Sequence[float], own: Sequence[float]) -> float:
    """Mean difference over the tokens that both tell of (a stop token that the server left out has no number)."""
    return fmean(abs(a - b) for a, b in zip(told, own, strict=False))


def read_completion(
    reply: Any, model: str, words: Words, spec: RolloutsSpec
) -> tuple[tuple[int, ...], tuple[float, ...], str]:
    """(ids with the stop token, log-probabilities as told, finish) of one answer. Log-probabilities are () where the
    server gives none, and stop before a stop token that it left out. Raises Lost for whatever cannot be learnt from.
    """
    choice = _choice(reply, model)
    finish, (ids, logps) = choice.get("finish_reason"), _tokens(choice, words)
    if finish not in ("stop", "length"):
        raise Lost(f"an answer that ended for the reason {str(finish)[:40]!r}")
    if not ids:
        raise Lost("an empty answer")
    if any(not 0 <= token < words.vocab_size for token in ids):
        raise Lost("a token that is not in the vocabulary")
    if any(token in words.stop_ids for token in ids[:-1]):
        raise Lost("an answer that goes on after its stop token")
    ends = ids[-1] in words.stop_ids
    if finish == "stop" and not ends:
        ids = [*ids, words.end_id]
    if len(ids) > spec.max_new_tokens + (finish == "stop" and not ends):
        raise Lost("an answer longer than rollouts.max_new_tokens")
    return tuple(ids), tuple(logps), "stop" if ends or finish == "stop" else "length"


def _choice(reply: Any, model: str) -> dict[str, Any]:
    if not isinstance(reply, dict):
        raise Lost("a reply that is no JSON object")
    if reply.get("model", model) != model:
        raise Lost(f"an answer by the model {str(reply['model'])[:80]!r}, and {model!r} was asked")
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Lost("a reply without an answer (no choices)")
    return choices[0]


def _tokens(choice: dict[str, Any], words: Words) -> tuple[list[int], list[float]]:
    """Ids as the server tells them; where it tells none, its text tokenised here, if that gives as many tokens as it
    tells log-probabilities of.
    """
    told = choice.get("logprobs")
    if not isinstance(told, dict):
        told = {}
    entries = list(_entries(told))
    logps = [logp for _, logp in entries]
    ids: Any = choice.get("token_ids")
    if ids is None and entries and all(token is not None for token, _ in entries):
        ids = [token for token, _ in entries]
    if ids is None:
        text = choice.get("text")
        if not isinstance(text, str):
            raise Lost("an answer without text or tokens")
        ids = list(words.encode(text))
    if not isinstance(ids, list) or any(type(token) is not int for token in ids):
        raise Lost("token ids that are no whole numbers")
    if logps and len(logps) != len(ids):
        raise Lost("log-probabilities of another number of tokens than its answer has")
    return ids, logps


def _entries(told: dict[str, Any]) -> Iterator[tuple[int | None, float]]:
    """(id where it is told, log-probability) of each token: the forms of vLLM and of llama.cpp."""
    if isinstance(content := told.get("content"), list):
        pairs = [(one.get("id"), one.get("logprob")) if isinstance(one, dict) else (None, None) for one in content]
    else:
        names, numbers = told.get("tokens"), told.get("token_logprobs")
        if not isinstance(names, list) or not isinstance(numbers, list) or len(names) != len(numbers):
            return
        found = [_AS_ID.fullmatch(name) if isinstance(name, str) else None for name in names]
        pairs = [(int(match[1]) if match else None, number) for match, number in zip(found, numbers, strict=True)]
    for token, number in pairs:
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise Lost("a log-probability that is no number")
        if not -_LEAST <= number <= _ROUNDING:  # nan is nowhere
            raise Lost("a log-probability that none can be (not finite, above 0, or far below)")
        yield token if type(token) is int else None, float(number)

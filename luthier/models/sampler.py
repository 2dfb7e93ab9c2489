"""The local Sampler and Scorer: many prompts at once through one PackedModel.

Rows decode in slots; the last active row moves into a finished row's slot (so active rows stay dense), and free slots
are refilled from the queue, longest prompt first. The longest common prefix of all prompts is computed once. Randomness
belongs to the prompt: its generator is seeded from (seed, prompt tokens, how often that prompt came before), never from
its neighbours.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
import torch

from luthier.errors import EvaluateError
from luthier.models.packed import DecodeSession, PackedModel
from luthier.types import Batch, Completion, Message, Progress

# Keys and values of all slots together; beyond it fewer rows decode at a time.
_CACHE_BYTES = 2 << 30
# Scoring: tokens per packed forward, and rows of logits at a time (512 x 150k vocabulary x 4 bytes = 300 MB).
_SCORE_TOKENS, _SCORE_ROWS = 2048, 512
# A shorter common prefix is not worth a second product in every step.
_MIN_PREFIX = 8


@dataclass
class _Row:
    """One prompt on its way: its place in the caller's list, its tokens, and what was sampled so far."""

    index: int
    prompt: list[int]
    rng: random.Random
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    finish: str = ""


class LocalSampler:
    """Implements types.Sampler and types.Scorer over a model in this process.

    encode: messages -> prompt ids (generation prompt included). decode: ids -> text. stop_ids: what ends an answer.
    encode_answer: (messages, answer) -> (ids, start): the whole row and where the answer begins, for `score`.
    encode_text: text -> ids, for `score_texts` (its first token is context only).
    A completion's `ids` include the stop token that ended it; its `text` does not.
    """

    def __init__(
        self,
        model: PackedModel,
        *,
        encode: Callable[[Sequence[Message]], Sequence[int]],
        decode: Callable[[Sequence[int]], str],
        stop_ids: frozenset[int] | Sequence[int],
        name: str,
        batch_size: int = 32,
        encode_answer: Callable[[Sequence[Message], str], tuple[Sequence[int], int]] | None = None,
        encode_text: Callable[[str], Sequence[int]] | None = None,
    ) -> None:
        self.model, self.name, self.batch_size = model, name, batch_size
        self.encode, self.decode, self.stop_ids = encode, decode, frozenset(stop_ids)
        self.encode_answer, self.encode_text = encode_answer, encode_text

    def sample(
        self,
        prompts: Sequence[Sequence[Message]],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> list[Completion]:
        """One completion a prompt, in order. Raises EvaluateError on an empty prompt or non-finite logits."""
        ids = [[int(i) for i in self.encode(messages)] for messages in prompts]
        return self.sample_ids(
            ids, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, progress=progress
        )

    def sample_ids(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> list[Completion]:
        """As `sample`, from prompt token ids."""
        if max_new_tokens < 1 or temperature < 0:
            raise EvaluateError(f"max_new_tokens={max_new_tokens}, temperature={temperature}: expected >= 1 and >= 0")
        rows = _seeded_rows(prompts, seed)
        run = _Run(self.stop_ids, max_new_tokens, temperature, len(rows), progress)
        with _inference(self.model):
            for group in self._groups(rows, max_new_tokens):
                self._decode(group, run)
        return [self._completion(row) for row in rows]

    def stream(self, messages: Sequence[Message], *, max_new_tokens: int) -> Iterator[int]:
        """Greedy token ids of one answer as they come, without the stop token."""
        prompt = [int(i) for i in self.encode(messages)]
        total = len(prompt) + max_new_tokens
        length_class = self.model.length_class(total)
        with _inference(self.model):
            session = self.model.session(num_slots=1, capacity=total, prefix=(), length_class=length_class)
            logits = session.fill([0], [prompt])
            for _ in range(max_new_tokens):
                token = int(logits.argmax(-1))
                if token in self.stop_ids:
                    return
                yield token
                logits = session.step([token])

    def _groups(self, rows: list[_Row], max_new_tokens: int) -> Iterator[list[_Row]]:
        """Rows that may share a session: one length class and, when memory is short, similar lengths. Longest first."""
        per_token = self.model.kv_bytes_per_token
        longest = max((len(row.prompt) for row in rows), default=0) + max_new_tokens
        is_tight = min(self.batch_size, len(rows)) * longest * per_token > _CACHE_BYTES
        groups: dict[tuple[int, int], list[_Row]] = {}
        for row in sorted(rows, key=lambda row: -len(row.prompt)):
            total = len(row.prompt) + max_new_tokens
            key = (self.model.length_class(total), total.bit_length() if is_tight else 0)
            groups.setdefault(key, []).append(row)
        yield from groups.values()

    def _decode(self, rows: list[_Row], run: _Run) -> None:
        num_prefix = _common_prefix([row.prompt for row in rows])
        longest = len(rows[0].prompt) + run.max_new_tokens
        capacity = longest - num_prefix
        affordable = _CACHE_BYTES // max(1, capacity * self.model.kv_bytes_per_token)
        num_slots = max(1, min(self.batch_size, len(rows), affordable))
        session = self.model.session(
            num_slots=num_slots,
            capacity=capacity,
            prefix=rows[0].prompt[:num_prefix],
            length_class=self.model.length_class(longest),
        )
        queue, active = list(rows), []
        # Prefill pays by the batch, an empty slot costs little: wait until an eighth of the slots is free.
        refill_at = max(1, num_slots // 8)
        while queue or active:
            free = num_slots - len(active)
            if queue and (free >= refill_at or not active):
                new, queue = queue[:free], queue[free:]
                slots = range(len(active), len(active) + len(new))
                logits = session.fill(list(slots), [row.prompt[num_prefix:] for row in new])
                active += new
                run.take(logits, new)
            else:
                run.take(session.step([row.ids[-1] for row in active]), active)
            _close_gaps(session, active)

    def _completion(self, row: _Row) -> Completion:
        text_ids = row.ids[:-1] if row.finish == "stop" else row.ids
        finish = "stop" if row.finish == "stop" else "length"
        return Completion(self.decode(text_ids), tuple(row.ids), finish, tuple(row.logps))

    def score(self, pairs: Sequence[tuple[Sequence[Message], str]]) -> list[list[float]]:
        """Natural log p of every answer token, its stop token included, per (prompt, answer)."""
        if self.encode_answer is None:
            raise EvaluateError("this sampler was built without encode_answer", hint="hand it in to score answers")
        return self.score_ids([self.encode_answer(messages, answer) for messages, answer in pairs])

    def score_texts(self, texts: Sequence[str]) -> list[tuple[float, int]]:
        """(sum of log p over all tokens but the first, UTF-8 bytes) per text."""
        if self.encode_text is None:
            raise EvaluateError("this sampler was built without encode_text", hint="hand it in to score texts")
        scores = self.score_ids([(self.encode_text(text), 1) for text in texts])
        return [(float(sum(values)), len(text.encode())) for values, text in zip(scores, texts, strict=True)]

    def score_ids(self, rows: Sequence[tuple[Sequence[int], int]]) -> list[list[float]]:
        """Log p of ids[start:] given what precedes each, per (ids, start >= 1)."""
        scores: list[list[float]] = [[] for _ in rows]
        scored = [i for i, (ids, start) in enumerate(rows) if len(ids) > max(start, 1)]
        scored.sort(key=lambda i: len(rows[i][0]))
        with _inference(self.model):
            for members in _packs(scored, [len(ids) for ids, _ in rows]):
                values = self._score_pack([rows[i] for i in members])
                for i, row_scores in zip(members, values, strict=True):
                    scores[i] = row_scores
        return scores

    def _score_pack(self, rows: list[tuple[Sequence[int], int]]) -> list[list[float]]:
        lengths = [len(ids) for ids, _ in rows]
        starts = [max(start, 1) for _, start in rows]
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        keep = np.concatenate(
            [np.arange(b + s - 1, b + n - 1) for b, s, n in zip(bounds[:-1], starts, lengths, strict=True)]
        )
        ids = np.concatenate([np.asarray(ids, dtype=np.int64) for ids, _ in rows])
        positions = np.concatenate([np.arange(n) for n in lengths])
        batch = Batch(ids, positions, bounds, keep, ids[keep + 1])
        hidden = self.model.hidden(batch)
        targets = torch.as_tensor(batch.targets_K, device=hidden.device)
        log_ps = []
        for hidden_part, targets_part in zip(hidden.split(_SCORE_ROWS), targets.split(_SCORE_ROWS), strict=True):
            logits = self.model.head(hidden_part).float()
            log_ps.append(logits.gather(1, targets_part[:, None])[:, 0] - logits.logsumexp(-1))
        flat = torch.cat(log_ps)
        return [part.tolist() for part in flat.split([n - s for n, s in zip(lengths, starts, strict=True)])]


@dataclass
class _Run:
    """What one call of `sample` asks for, and how far it is."""

    stop_ids: frozenset[int]
    max_new_tokens: int
    temperature: float
    num_rows: int
    progress: Progress | None
    num_done: int = 0
    num_tokens: int = 0
    started: float = field(default_factory=perf_counter)

    def take(self, logits_NV: torch.Tensor, rows: Sequence[_Row]) -> None:
        """Chooses each row's next token and notes which rows it finishes."""
        for row, token in zip(rows, _choose(logits_NV, rows, self.temperature), strict=True):
            row.ids.append(token)
            if token in self.stop_ids:
                row.finish = "stop"
            elif len(row.ids) >= self.max_new_tokens:
                row.finish = "length"
            self.num_done += bool(row.finish)
        self.num_tokens += len(rows)
        if self.progress is not None:
            elapsed = max(perf_counter() - self.started, 1e-9)
            self.progress(self.num_done, self.num_rows, tokens_per_s=self.num_tokens / elapsed)


def _choose(logits_NV: torch.Tensor, rows: Sequence[_Row], temperature: float) -> list[int]:
    """Greedy (the lowest id wins a tie), or by inverting the distribution function at the row's own random number; then
    each row also notes the log-probability of what was drawn.
    """
    best = logits_NV.max(dim=-1)
    if not bool(torch.isfinite(best.values).all()):
        raise EvaluateError("the model's logits are not finite", hint="the weights or the adapter are broken")
    if temperature == 0:
        return best.indices.tolist()
    weights = torch.exp((logits_NV.double() - best.values[:, None]) / temperature).cumsum(-1)
    drawn = torch.tensor([row.rng.random() for row in rows], dtype=torch.float64, device=weights.device)
    chosen = torch.searchsorted(weights, drawn[:, None] * weights[:, -1:], right=True)[:, 0]
    chosen = chosen.clamp_(max=logits_NV.shape[-1] - 1)
    above = (logits_NV.gather(1, chosen[:, None])[:, 0].double() - best.values) / temperature
    for row, logp in zip(rows, (above - weights[:, -1].log()).tolist(), strict=True):
        row.logps.append(logp)
    return chosen.tolist()


def _close_gaps(session: DecodeSession, active: list[_Row]) -> None:
    """Drops finished rows; the last active row moves into each gap."""
    for slot in reversed(range(len(active))):
        if active[slot].finish:
            last = active.pop()
            if slot < len(active):
                active[slot] = last
                session.move(len(active), slot)


def _seeded_rows(prompts: Sequence[Sequence[int]], seed: int) -> list[_Row]:
    rows, seen = [], Counter()
    for index, prompt in enumerate(prompts):
        if not len(prompt):
            raise EvaluateError(f"prompt {index} has no tokens", hint="a prompt must encode to at least one token")
        ids = [int(i) for i in prompt]
        repeat = seen[tuple(ids)]
        seen[tuple(ids)] += 1
        digest = hashlib.sha256(repr((seed, repeat, ids)).encode()).digest()
        rows.append(_Row(index, ids, random.Random(int.from_bytes(digest[:16], "big"))))
    return rows


def _common_prefix(prompts: list[list[int]]) -> int:
    """Tokens that all prompts begin with, leaving each at least one of its own; 0 when sharing does not pay."""
    if len(prompts) < 2:
        return 0
    first, last = min(prompts), max(prompts)
    limit = min(len(prompt) for prompt in prompts) - 1
    length = 0
    while length < limit and first[length] == last[length]:
        length += 1
    return length if length >= _MIN_PREFIX else 0


def _packs(order: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Members in order, cut where a pack would exceed _SCORE_TOKENS."""
    pack: list[int] = []
    num_tokens = 0
    for i in order:
        if pack and num_tokens + lengths[i] > _SCORE_TOKENS:
            yield pack
            pack, num_tokens = [], 0
        pack.append(i)
        num_tokens += lengths[i]
    if pack:
        yield pack


@contextmanager
def _inference(model: PackedModel) -> Iterator[None]:
    """No gradients and no dropout; the model's mode is restored."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)

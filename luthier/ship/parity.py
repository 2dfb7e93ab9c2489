"""Is an artefact what was trained? The adapter on its base is the reference; every artefact is held against it.

Teacher-forced on the reference answers: KL(reference || candidate) and same-top-1 at every answer position, and the
token ids that the artefact's own tokenizer and template give for the prompts. Greedy agreement is reported, not
judged: one near tie flips a whole text (research/serving.md section 4, with the limits' sources). A candidate may
know the whole distribution (a model) or only its likeliest tokens (llama.cpp's server); then the rest is one bucket,
which makes its KL a lower bound.

Shape legend: T tokens, A answer positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from luthier.errors import ArtifactError
from luthier.models.packed import PackedModel
from luthier.ship.llama_cpp import LlamaCpp
from luthier.types import Batch, Completion, Message

NUM_TOP = 200
"""Likeliest tokens asked of a runner that does not give the whole distribution."""
TIE_NATS = 0.01
"""Tokens whose reference log-probabilities differ by less are equally right: the last bit decides which is first."""


@dataclass(frozen=True)
class ParityRow:
    """One prompt and the answer to be forced, as ids. `messages` (the prompt) lets an artefact render it by itself."""

    row_id: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    messages: tuple[Message, ...] = ()


LogitsFn = Callable[[Sequence[int], Sequence[int]], Any]
"""(ids, positions) -> logits (len(positions), V) of what follows each position; numpy or torch."""


class Candidate(Protocol):
    """What an artefact must tell."""

    @property
    def name(self) -> str:
        """Who reads the artefact, e.g. 'luthier' or 'llama.cpp'."""
        ...

    def distances(self, row: ParityRow, reference_AV: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(KL in nats, same-top-1 as bool) at every answer position, against reference log-probabilities."""
        ...

    def prompt_ids(self, row: ParityRow) -> tuple[int, ...] | None:
        """The prompt as the artefact's own tokenizer and template give it; None when it cannot tell."""
        ...


@dataclass(frozen=True)
class ParityMetrics:
    """KL in nats over `num_positions` answer tokens. Shares are 0..1; None: not measured.

    top1: share of positions with the same likeliest token; ties of the reference (TIE_NATS) count as the same.
    """

    kl_mean: float
    kl_p99: float
    kl_max: float
    top1: float
    num_positions: int
    num_rows: int
    prompts_equal: float | None = None
    greedy_match: float | None = None


@dataclass(frozen=True)
class ParityRecord:
    """The judgement on one artefact by one reader. `reasons`: what failed, in words; empty when passed."""

    artefact: str
    reader: str
    metrics: ParityMetrics
    threshold: dict[str, float]
    passed: bool
    reasons: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """JSON-able form, for parity.json and the card."""
        return asdict(self)


class Reference:
    """Log-probabilities of the reference at every answer position, computed once and kept in one file (float32)."""

    def __init__(self, rows: Sequence[ParityRow], logprobs_AV: np.ndarray, starts: Sequence[int]) -> None:
        self.rows = tuple(rows)
        self._logprobs_AV, self._starts = logprobs_AV, tuple(starts)

    def first(self, num_rows: int) -> Reference:
        """The reference on its first rows only, for readers that are slow."""
        return Reference(self.rows[:num_rows], self._logprobs_AV, self._starts[:num_rows])

    def logprobs(self, index: int) -> np.ndarray:
        """Those of row `index`, (A, V)."""
        start = self._starts[index]
        return self._logprobs_AV[start : start + len(self.rows[index].answer_ids)]


def record_reference(logits: LogitsFn, rows: Sequence[ParityRow], scratch: Path) -> Reference:
    """Runs the reference once over `rows`; its log-probabilities lie in file `scratch` (answer tokens x V x 4 B)."""
    if not rows or any(not row.prompt_ids or not row.answer_ids for row in rows):
        raise ArtifactError("parity needs rows with a prompt and an answer", hint="is the dev split empty?")
    starts = np.cumsum([0, *(len(row.answer_ids) for row in rows)]).tolist()
    store = np.empty((0, 0), np.float32)
    for row, start, end in zip(rows, starts, starts[1:], strict=False):
        logprobs_AV = _log_softmax(_answer_logits(logits, row))
        if not np.isfinite(logprobs_AV).all():
            raise ArtifactError(
                f"the reference gives NaN or infinity on row {row.row_id}", hint="did training diverge?"
            )
        if start == 0:  # the first row tells the vocabulary
            shape = (starts[-1], logprobs_AV.shape[1])
            store = np.lib.format.open_memmap(scratch, mode="w+", dtype=np.float32, shape=shape)
        store[start:end] = logprobs_AV
    return Reference(rows, store, starts)


def parity(reference: Reference, candidate: Candidate, *, greedy_match: float | None = None) -> ParityMetrics:
    """Holds a candidate against the reference on the reference's rows."""
    kls, tops, equal = [], [], []
    for index, row in enumerate(reference.rows):
        kl_A, top_A = candidate.distances(row, reference.logprobs(index))
        kls.append(kl_A)
        tops.append(top_A)
        ids = candidate.prompt_ids(row)
        if ids is not None:
            equal.append(tuple(ids) == row.prompt_ids)
    kl = np.nan_to_num(np.concatenate(kls), nan=np.inf)
    return ParityMetrics(
        kl_mean=float(kl.mean()),
        kl_p99=float(np.quantile(kl, 0.99, method="higher")),
        kl_max=float(kl.max()),
        top1=float(np.concatenate(tops).mean()),
        num_positions=len(kl),
        num_rows=len(reference.rows),
        prompts_equal=float(np.mean(equal)) if equal else None,
        greedy_match=greedy_match,
    )


def judge(artefact: str, reader: str, metrics: ParityMetrics, limits: Mapping[str, float]) -> ParityRecord:
    """Passed when mean KL <= limits['kl'], top-1 >= limits['top1'] and every prompt has the same token ids."""
    reasons = []
    if not metrics.kl_mean <= limits["kl"]:
        reasons.append(f"mean KL {metrics.kl_mean:.2e} is above {limits['kl']:.0e}")
    if not metrics.top1 >= limits["top1"]:
        reasons.append(f"same top-1 at {metrics.top1:.1%} of positions, below {limits['top1']:.0%}")
    if metrics.prompts_equal is not None and metrics.prompts_equal < 1.0:
        reasons.append(f"only {metrics.prompts_equal:.0%} of the prompts give the same token ids")
    threshold = {"kl": float(limits["kl"]), "top1": float(limits["top1"])}
    return ParityRecord(artefact, reader, metrics, threshold, not reasons, tuple(reasons))


def greedy_match(reference: Sequence[Completion], candidate: Sequence[Completion]) -> float:
    """Share of prompts to which both samplers gave the same text, 0..1."""
    pairs = list(zip(reference, candidate, strict=True))
    return sum(ours.text == theirs.text for ours, theirs in pairs) / len(pairs)


@dataclass(frozen=True)
class ModelCandidate:
    """An artefact read as a model that gives the whole distribution. `encode`: its folder's tokenizer and template."""

    name: str
    logits: LogitsFn
    encode: Callable[[Sequence[Message]], Sequence[int]] | None = None

    def distances(self, row: ParityRow, reference_AV: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See Candidate."""
        return full_distances(reference_AV, _log_softmax(_answer_logits(self.logits, row)))

    def prompt_ids(self, row: ParityRow) -> tuple[int, ...] | None:
        """See Candidate."""
        return tuple(self.encode(row.messages)) if self.encode is not None and row.messages else None


@dataclass(frozen=True)
class LlamaCppCandidate:
    """A GGUF file asked through llama.cpp: one forced prefix per answer position, its likeliest tokens compared."""

    runner: LlamaCpp
    name: str = "llama.cpp"
    num_top: int = NUM_TOP

    def distances(self, row: ParityRow, reference_AV: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See Candidate; the KL is a lower bound, exact when num_top covers the vocabulary."""
        num_top = min(self.num_top, reference_AV.shape[1])
        kl_A, top_A = [], []
        for position, reference_V in enumerate(reference_AV):
            ids, logprobs = self.runner.top_logprobs([*row.prompt_ids, *row.answer_ids[:position]], num_top)
            kl_A.append(top_kl(reference_V, ids, logprobs))
            top_A.append(bool(reference_V[ids[logprobs.argmax()]] >= reference_V.max() - TIE_NATS))
        return np.array(kl_A), np.array(top_A)

    def prompt_ids(self, row: ParityRow) -> tuple[int, ...] | None:
        """See Candidate. Rendered by the template inside the file, tokenized by llama.cpp."""
        if not row.messages:
            return None
        return tuple(self.runner.chat_ids(row.messages))


def model_logits(model: PackedModel) -> LogitsFn:
    """Logits of one of luthier's models (adapter on or off, as it stands) at chosen positions of one document."""

    def logits(ids: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        batch = Batch(
            ids_T=np.asarray(ids, np.int64),
            positions_T=np.arange(len(ids), dtype=np.int64),
            cu_seqlens=np.array([0, len(ids)], np.int64),
            keep_K=np.asarray(positions, np.int64),
            targets_K=np.zeros(len(positions), np.int64),
        )
        with torch.inference_mode():
            return model.head(model.hidden(batch))

    return logits


def full_distances(reference_AV: np.ndarray, candidate_AV: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(KL in nats (A), same top-1 (A)) of two sets of log-probabilities."""
    if reference_AV.shape != candidate_AV.shape:
        raise ArtifactError(f"vocabulary differs: reference {reference_AV.shape}, candidate {candidate_AV.shape}")
    reference_AV = np.asarray(reference_AV, np.float64)
    kl_A = (np.exp(reference_AV) * (reference_AV - candidate_AV)).sum(-1)
    chosen_A = np.take_along_axis(reference_AV, candidate_AV.argmax(-1)[:, None], -1)[:, 0]
    return np.maximum(kl_A, 0.0), chosen_A >= reference_AV.max(-1) - TIE_NATS


def top_kl(reference_V: np.ndarray, ids: np.ndarray, logprobs: np.ndarray) -> float:
    """KL in nats when the candidate tells only `logprobs` of tokens `ids`: all other tokens are one bucket."""
    reference_V = np.asarray(reference_V, np.float64)
    p, q = np.exp(reference_V[ids]), np.exp(logprobs)
    inside = float((p * (reference_V[ids] - logprobs)).sum())
    rest_p, rest_q = max(1.0 - p.sum(), 0.0), max(1.0 - q.sum(), 1e-12)
    rest = rest_p * (np.log(rest_p) - np.log(rest_q)) if rest_p > 1e-12 and len(ids) < len(reference_V) else 0.0
    return max(inside + float(rest), 0.0)


def _answer_logits(logits: LogitsFn, row: ParityRow) -> np.ndarray:
    """(A, V) float64: position i predicts answer token i, so the last answer token itself is not needed."""
    ids = [*row.prompt_ids, *row.answer_ids[:-1]]
    values = logits(ids, range(len(row.prompt_ids) - 1, len(ids)))
    if isinstance(values, torch.Tensor):
        values = values.detach().float().cpu().numpy()
    return np.asarray(values, np.float64)


def _log_softmax(logits_AV: np.ndarray) -> np.ndarray:
    shifted = logits_AV - logits_AV.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))

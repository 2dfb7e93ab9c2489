"""What went wrong with a run, in words: from its curves, its answers and its data, with evidence and the next move.

Rules, not a model: each compares figures of this run with one another, so that loss scales of other bases and tasks do
not matter, and says the figures it went by. Order of the findings: what makes the others meaningless comes first. The
next moves name data before knobs. How often the rules are right is measured on runs made to fail
(`benchmarks/diagnosis.py`, docs/diagnosis.md).
Terms: start = median loss of the first three steps, end = of the last tenth; a run of fewer
than MIN_STEPS steps has no curve to read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median

MIN_STEPS = 12
FEW_ROWS = 100
CALM, SPIKE = 7, 3.0  # steps of the running median; a spike stands this far above it
OVERSHOOT = 1.1  # a calm curve this far above its start has gone up
SLOW, STILL = 0.15, 0.2  # a fall below SLOW of the start is little; STILL of it in the second half is not over
FAR_ABOVE = 20.0  # times the usual rate
RISEN = 1.05  # dev loss above its minimum
GAP, BY_HEART = 1.5, 10.0  # dev loss over training loss of rows that were seen before
SMALL = 0.02  # nats per token that do not matter
COPIED = 0.1  # share of the answers


@dataclass(frozen=True)
class Step:
    """One logged optimizer step: mean loss in nats per trained token, gradient norm before clipping."""

    step: int
    loss: float
    grad_norm: float
    learning_rate: float


@dataclass(frozen=True)
class Refused:
    """A step that made no update: its loss was no number or a spike; the rows that it is blamed on, the worst first."""

    step: int
    why: str
    row_ids: tuple[str, ...]
    is_finite: bool = True


@dataclass(frozen=True)
class Answers:
    """The tune's answers to test cases. copied: wrong, and word for word the answer of one single training row (long
    answers only); num_long: cases whose right answer is long enough to tell."""

    num_copied: int
    num_long: int


@dataclass(frozen=True)
class Evidence:
    """What is known of a run. dev: (step, loss). usual_rate: what plan/practice.yaml proposes for this base, None for a
    base of unknown size. refused: steps whose update was not made. markers: chat markers of the template that
    the tokenizer splits. general: relative rise of bits per byte on general text and whether its gate failed. improved:
    whether the tune beat base and prompt, None while that is not known."""

    steps: tuple[Step, ...]
    dev: tuple[tuple[int, float], ...]
    num_rows: int
    num_epochs: int
    learning_rate: float
    usual_rate: float | None = None
    lora_r: int | None = None
    refused: tuple[Refused, ...] = ()
    markers: tuple[str, ...] = ()
    general: tuple[float, bool] | None = None
    answers: Answers | None = None
    improved: bool | None = None


@dataclass(frozen=True)
class Move:
    """A next move: in words, and the settings it consists of (dotted key -> value), none for what data or people do."""

    words: str
    settings: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True)
class Finding:
    """kind: one of KINDS; evidence: a sentence with the figures; moves: data first, then knobs."""

    kind: str
    evidence: str
    moves: tuple[Move, ...]


KINDS = {
    "wrong_template": "wrong chat template",
    "instability": "instability",
    "rate_too_high": "learning rate too high",
    "rate_too_low": "learning rate too low",
    "too_little_data": "too little data",
    "memorised": "rows learnt by heart",
    "overfitting": "overfitting",
    "underfitting": "underfitting",
    "forgetting": "forgetting",
}


@dataclass(frozen=True)
class _Curve:
    """The loss curve in the figures that the rules compare. calm: running median over CALM steps, so that a spike of a
    step or two is not in it."""

    losses: tuple[float, ...]
    calm: tuple[float, ...]
    start: float
    end: float

    @property
    def fall(self) -> float:
        """Share of the start that was lost."""
        return 1 - self.end / self.start if self.start else 0.0

    @property
    def late_share(self) -> float:
        """Share of the whole fall that came after the second quarter."""
        quarter = max(1, len(self.losses) // 4)
        second, last = median(self.losses[quarter : 2 * quarter]), median(self.losses[-quarter:])
        return (second - last) / max(self.start - last, 1e-9)


def diagnose(evidence: Evidence) -> list[Finding]:
    """Findings, the most fundamental first; none = nothing wrong that these rules know."""
    found = [*_before_the_curve(evidence)]
    curve = _curve(evidence.steps)
    if curve is not None and not found:
        found += _movement(evidence, curve)
    if not any(one.kind in ("instability", "rate_too_high", "wrong_template") for one in found):
        found += _generalisation(evidence)
    if curve is not None and not found:
        found += _unfinished(evidence, curve)
    return [*found, *_forgetting(evidence)]


def _curve(steps: Sequence[Step]) -> _Curve | None:
    if len(steps) < MIN_STEPS:
        return None
    losses, half = tuple(step.loss for step in steps), CALM // 2
    calm = tuple(median(losses[max(0, i - half) : i + half + 1]) for i in range(len(losses)))
    last = max(3, len(losses) // 10)
    return _Curve(losses, calm, median(losses[:3]), median(losses[-last:]))


def _before_the_curve(evidence: Evidence) -> Iterator[Finding]:
    if evidence.markers:
        yield Finding(
            "wrong_template",
            f"the chat template writes {', '.join(map(repr, evidence.markers[:3]))}, which this tokenizer cuts into "
            "pieces: the base has never seen them as markers",
            (Move("use the base's own template: its tokenizer_config.json or chat_template.jinja"),),
        )
    refused = list(evidence.refused)
    if len(refused) > 1 or not all(one.is_finite for one in refused):
        rows = dict.fromkeys(row for one in refused for row in one.row_ids[:2])
        yield Finding(
            "instability",
            f"{len(refused)} steps made no update, the first at step {refused[0].step} "
            f"({refused[0].why.partition(';')[0]}); rows {', '.join([*rows][:5])}",
            (Move("look at these rows first: odd bytes, endless or empty answers"), *_calmer(evidence)),
        )


def _calmer(evidence: Evidence) -> tuple[Move, ...]:
    rate = float(f"{evidence.learning_rate / 5:.2g}")
    return (
        Move(
            f"a fifth of the rate, a longer warm-up and tighter clipping (rate {rate:g})",
            (("train.learning_rate", rate), ("train.warmup_ratio", 0.2), ("train.max_grad_norm", 0.3)),
        ),
    )


def _movement(evidence: Evidence, curve: _Curve) -> Iterator[Finding]:
    """Did the weights move as they should?"""
    rate, highest = evidence.learning_rate, max(curve.calm)
    low = min(curve.calm)
    place = curve.calm.index(low)
    regained = max(curve.calm[place:]) - low
    if highest > OVERSHOOT * curve.start or regained > 0.3 * (curve.start - low):
        yield Finding(
            "rate_too_high",
            f"the training loss began at {curve.start:.3g}, rose to {max(highest, low + regained):.3g} and ended at "
            f"{curve.end:.3g}; lowest {low:.3g} at step {evidence.steps[place].step} (rate {rate:g})",
            _calmer(evidence),
        )
    elif len(spikes := _spikes(curve)) > 1:
        where = ", ".join(str(evidence.steps[i].step) for i in spikes[:6])
        yield Finding(
            "instability",
            f"{len(spikes)} of {len(curve.losses)} steps stand out by {SPIKE:g} times their neighbours' loss and more "
            f"(steps {where})",
            (
                Move("look at the rows of these steps first: the longest and the oddest in the data report"),
                *_calmer(evidence),
            ),
        )
    elif curve.fall < SLOW and curve.late_share > STILL:
        more = float(f"{rate * 10:.2g}")
        yield Finding(
            "rate_too_low",
            f"the training loss fell by only {curve.fall:.1%} in {len(curve.losses)} steps, evenly (rate {rate:g})",
            (
                Move(
                    f"ten times the rate; luthier recommend says what is usual ({more:g})",
                    (("train.learning_rate", more),),
                ),
            ),
        )


def _spikes(curve: _Curve) -> list[int]:
    """Places whose loss stands SPIKE times above the calm curve, by at least a tenth of the start; the first steps,
    whose loss is high anyhow, are left out."""
    first = max(8, len(curve.losses) // 10)
    return [
        i
        for i in range(first, len(curve.losses))
        if curve.losses[i] > SPIKE * curve.calm[i] and curve.losses[i] - curve.calm[i] > 0.1 * curve.start
    ]


def _generalisation(evidence: Evidence) -> Iterator[Finding]:
    """Does what was learnt hold for rows that were not trained on?"""
    signs, by_heart = _signs(evidence)
    if not signs:
        if evidence.num_rows < FEW_ROWS and evidence.improved is False:
            yield _too_few(evidence, "the tune is not shown to beat base and prompt")
    elif evidence.num_rows < FEW_ROWS:
        yield _too_few(evidence, "; ".join(signs))
    else:
        kind = "memorised" if by_heart else "overfitting"
        yield Finding(kind, "; ".join(signs), (_more_rows(evidence), _less(evidence)))


def _signs(evidence: Evidence) -> tuple[list[str], bool]:
    """(what says that the tune knows its own rows better than others, whether it knows them by heart)."""
    signs, by_heart, answers = [], False, evidence.answers
    if answers is not None and answers.num_copied > COPIED * max(1, answers.num_long):
        signs.append(f"{answers.num_copied} of {answers.num_long} long answers are one training row's, word for word")
        by_heart = True
    if not evidence.dev:
        return signs, by_heart
    last_step, final = evidence.dev[-1]
    best_step, best = min(evidence.dev, key=lambda point: point[1])
    if evidence.num_epochs > 1 and evidence.steps:
        # Rows that were seen before: the last epoch's.
        seen = fmean(step.loss for step in evidence.steps[-max(1, len(evidence.steps) // evidence.num_epochs) :])
        if final > GAP * seen and final - seen > SMALL:
            signs.append(f"dev loss {final:.3g} against {seen:.3g} on training rows in the last epoch")
            by_heart |= final > BY_HEART * seen
    if final > RISEN * best and final - best > SMALL and best_step < last_step:
        signs.append(f"dev loss was lowest at step {best_step} ({best:.3g}) and ended at {final:.3g}")
    return signs, by_heart


def _too_few(evidence: Evidence, words: str) -> Finding:
    return Finding(
        "too_little_data",
        f"{evidence.num_rows} training rows, {words}",
        (
            Move(f"collect rows first: at least {5 * FEW_ROWS}, of the slices that the report's lost cases name"),
            Move("until then a prompt with solved examples: luthier run measures it beside the tune"),
        ),
    )


def _more_rows(evidence: Evidence) -> Move:
    return Move(
        f"more and more varied rows (now {evidence.num_rows}), first of the slices that the report's lost cases name; "
        "10-20% general rows beside them"
    )


def _less(evidence: Evidence) -> Move:
    epochs = max(1, evidence.num_epochs // 2)
    settings: list[tuple[str, object]] = [("train.num_epochs", epochs), ("train.early_stopping_patience", 2)]
    if evidence.lora_r is not None:
        settings += [("adapter.lora_dropout", 0.1)]
        if evidence.lora_r > 8:
            settings += [("adapter.lora_r", evidence.lora_r // 2)]
    return Move("then fewer passes, early stopping and dropout", tuple(settings))


def _unfinished(evidence: Evidence, curve: _Curve) -> Iterator[Finding]:
    """Was there more to learn?"""
    if curve.late_share > STILL and curve.fall >= SLOW:
        yield Finding(
            "underfitting",
            f"the training loss fell from {curve.start:.3g} to {curve.end:.3g}, {curve.late_share:.0%} of it in the "
            f"second half of {len(curve.losses)} steps: it had not levelled off",
            (
                Move("more rows of the kind it still gets wrong"),
                Move("twice the epochs", (("train.num_epochs", 2 * evidence.num_epochs),)),
            ),
        )
    elif evidence.improved is False and evidence.learning_rate > FAR_ABOVE * (evidence.usual_rate or math.inf):
        yield Finding(
            "rate_too_high",
            f"the training loss levelled off at {curve.end:.3g} and the tune does not beat base and prompt; the rate "
            f"({evidence.learning_rate:g}) is far above the usual one ({evidence.usual_rate:g})",
            (Move("the usual rate", (("train.learning_rate", evidence.usual_rate),)),),
        )
    elif evidence.improved is False:
        dev = f", dev loss {evidence.dev[-1][1]:.3g}" if evidence.dev else ""
        settings = () if evidence.lora_r is None else (("adapter.lora_r", 2 * evidence.lora_r),)
        yield Finding(
            "underfitting",
            f"the training loss levelled off at {curve.end:.3g}{dev}, and the tune does not beat base and prompt",
            (
                Move("check that the answers follow from the prompts: the report lists the lost cases"),
                Move("then a larger rank, or a base closer to the task", settings),
            ),
        )


def _forgetting(evidence: Evidence) -> Iterator[Finding]:
    if evidence.general is not None and evidence.general[1]:
        yield Finding(
            "forgetting",
            f"general text costs {evidence.general[0]:+.1%} bits per byte after the tune, more than the gate allows",
            (
                Move("replay: 10-20% general rows among the training rows"),
                Move(
                    "then half the rate and a longer warm-up",
                    (("train.learning_rate", evidence.learning_rate / 2), ("train.warmup_ratio", 0.4)),
                ),
            ),
        )

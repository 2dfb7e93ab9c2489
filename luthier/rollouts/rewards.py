"""Rewards of answers: a weighted sum of metrics, each in a process that can be stopped, and of a reward model's score.

A metric that raises, hangs or gives no number costs the answer it did so on: that one has no reward and is left out.
What runs in the sandbox (unit tests) has its own limits and is run for many answers at once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from luthier.config.rollouts import RolloutsSpec
from luthier.errors import LuthierError
from luthier.graders.grader import Grader, Task, numbers_of
from luthier.graders.guard import GuardedReward, Reward
from luthier.graders.registry import grader
from luthier.rollouts.reward_model import RewardModel
from luthier.types import Completion

REWARD_MODEL = "reward_model"
"""The name of a trained reward model's score among the parts of a reward; no metric is called so."""


@dataclass(frozen=True)
class Asked:
    """What an answer is held against: the row's own answer, and what else metrics read. prompt: the ids it answers;
    reference_ids: the row's own answer, its stop token included, where a run learns from it (gkd).
    """

    reference: str
    task: Task
    prompt: tuple[int, ...] = ()
    reference_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Rewarded:
    """value: the weighted sum, None where a part failed (`error` says why). parts: by metric, before weighing."""

    value: float | None
    parts: dict[str, float] = field(default_factory=dict)
    error: str = ""


class Rewards:
    """The rewards of a run. judge: the trained reward model, where the run has one. errors: how often each thing went
    wrong, over this process.
    """

    def __init__(self, spec: RolloutsSpec, judge: RewardModel | None = None) -> None:
        self.judge = judge
        self.weights: dict[str, float] = {**spec.rewards}
        self.graders = {name: grader(name) for name in self.weights}
        if judge is not None:
            self.weights[REWARD_MODEL] = spec.reward_model_weight
        limit_s = spec.reward_timeout_s
        self._guarded = {
            name: GuardedReward(each.grade, time_limit_s=limit_s)
            for name, each in self.graders.items()
            if each.grade_all is None
        }
        self.errors: Counter[str] = Counter()

    def of(
        self, said: Sequence[Completion], asked: Sequence[Asked], between: Callable[[], None] = lambda: None
    ) -> list[Rewarded]:
        """One an answer, in order. between: called before each; what it raises ends the work."""
        parts = {name: self._part(name, said, asked, between) for name in self.weights}
        return [self._sum({name: values[index] for name, values in parts.items()}) for index in range(len(said))]

    def means(self, parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """The mean of each part, by the name it has in the log; NaN for one that nobody has."""
        figures = {}
        for name in self.weights:
            known = [one[name] for one in parts if name in one]
            figures[name if name == REWARD_MODEL else f"reward_{name}"] = fmean(known) if known else math.nan
        return figures

    def _part(
        self, name: str, said: Sequence[Completion], asked: Sequence[Asked], between: Callable[[], None]
    ) -> list[Reward]:
        if name == REWARD_MODEL:
            assert self.judge is not None
            scores = self.judge.scores([one.prompt for one in asked], said, between)
            return [Reward(x) if math.isfinite(x) else Reward(None, f"it gave {x}") for x in scores]
        guarded, texts = self._guarded.get(name), [one.text for one in said]
        if guarded is None:
            between()
            return _side_by_side(self.graders[name], texts, asked)
        values = []
        for text, one in zip(texts, asked, strict=True):
            between()
            values.append(guarded(text, one.reference, one.task))
        return values

    def _sum(self, parts: dict[str, Reward]) -> Rewarded:
        failed = {name: part.error for name, part in parts.items() if part.value is None}
        known = {name: part.value for name, part in parts.items() if part.value is not None}
        if failed:
            error = "; ".join(f"{name}: {words}" for name, words in failed.items())
            self.errors[error] += 1
            return Rewarded(None, known, error)
        return Rewarded(sum(self.weights[name] * value for name, value in known.items()), known)

    def close(self) -> None:
        """Ends the processes."""
        for guarded in self._guarded.values():
            guarded.close()


def _side_by_side(metric: Grader, texts: Sequence[str], asked: Sequence[Asked]) -> list[Reward]:
    """All answers at once; where that fails, one by one, so that only what is to blame is lost."""
    handed = list(texts), [one.reference for one in asked], [one.task for one in asked]
    try:
        return [Reward(value) for value in numbers_of(metric.items(*handed))]
    except LuthierError as error:
        if len(texts) == 1:
            return [Reward(None, str(error))]
        return [_side_by_side(metric, [text], [one])[0] for text, one in zip(texts, asked, strict=True)]

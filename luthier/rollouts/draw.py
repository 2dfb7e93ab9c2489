"""Where the answers of a round come from: the model in training itself, token by token; or a server (`server.py`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from luthier.config.rollouts import RolloutsSpec
from luthier.models.sampler import LocalSampler
from luthier.rollouts.round import Answer
from luthier.types import EncodedRow


class Source(Protocol):
    """Draws answers, without their rewards yet."""

    def draw(self, prompts: Sequence[EncodedRow], seed: int, between: Callable[[], None]) -> list[Answer]:
        """`rollouts.answers` to each prompt, those to one prompt one after the other. What `between` raises ends the
        work. One with an error did not come, and has no tokens.
        """
        ...

    def figures(self, answers: Sequence[Answer]) -> dict[str, float]:
        """What is logged of how the answers of a round were drawn."""
        ...


class LocalSource:
    """The sampler over the model in training: tokens and log-probabilities as they were drawn."""

    def __init__(self, spec: RolloutsSpec, sampler: LocalSampler) -> None:
        self.spec, self.sampler = spec, sampler

    def draw(self, prompts: Sequence[EncodedRow], seed: int, between: Callable[[], None]) -> list[Answer]:
        """See `Source`."""
        spec = self.spec
        said = self.sampler.sample_ids(
            [row.ids for row in prompts for _ in range(spec.answers)],
            max_new_tokens=spec.max_new_tokens, temperature=spec.temperature, seed=seed,
            progress=lambda done, total, /, **figures: between(),
        )  # fmt: skip
        names = [(row.row_id, number) for row in prompts for number in range(spec.answers)]
        return [
            Answer(row, number, one.ids, one.logps, one.finish, one.text)
            for (row, number), one in zip(names, said, strict=True)
        ]

    def figures(self, answers: Sequence[Answer]) -> dict[str, float]:
        """None: all answers come."""
        del answers
        return {}

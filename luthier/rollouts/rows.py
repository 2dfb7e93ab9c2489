"""Answers as the rows of a step: after their prompts, in micro-batches, and what a model tells of their tokens.

The answers to a prompt stay together, so that a layout that shares prefixes computes their prompt once.
Shapes: K trained positions (the answers' own tokens).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from luthier.rollouts.round import Answer
from luthier.types import Batch, EncodedRow

LayOut = Callable[[Sequence[EncodedRow]], Batch]


class AnswerRows:
    """prompts: ids of every prompt, by row id. lay_out: rows -> packed batch; place: batch -> tensors for the model.
    shares: whether the layout computes a shared prompt once. budget: tokens of a micro-batch.
    """

    def __init__(
        self,
        prompts: Mapping[str, tuple[int, ...]],
        lay_out: LayOut,
        place: Callable[[Batch], Batch],
        *,
        shares: bool,
        budget: int,
    ) -> None:
        self.prompts, self.lay_out, self.place = dict(prompts), lay_out, place
        self.shares, self.budget = shares, budget

    def rows(self, answers: Iterable[Answer]) -> list[EncodedRow]:
        """Each as one sequence, of which the answer carries loss."""
        made = []
        for answer in answers:
            prompt = self.prompts[answer.row]
            trained = (False,) * len(prompt) + (True,) * len(answer.ids)
            made.append(EncodedRow(answer.name, (*prompt, *answer.ids), trained))
        return made

    def micro_batches(self, answers: Sequence[Answer]) -> list[list[int]]:
        """Places of `answers`, whole groups together, up to the budget of tokens that are computed."""
        groups: dict[str, list[int]] = {}
        for index, answer in enumerate(answers):
            groups.setdefault(answer.row, []).append(index)
        micros: list[list[int]] = []
        for group in groups.values():
            joined = [*micros[-1], *group] if micros else group
            if micros and self.cost([answers[index] for index in joined]) <= self.budget:
                micros[-1] = joined
            else:
                micros.append(group)
        return micros

    def cost(self, answers: Sequence[Answer]) -> int:
        """Tokens that are computed for them in one batch."""
        own = sum(len(answer.ids) for answer in answers)
        asked: Any = {answer.row for answer in answers} if self.shares else [answer.row for answer in answers]
        return own + sum(len(self.prompts[row]) for row in asked)

    def told(self, answers: Sequence[Answer], tell: Callable[[Batch], torch.Tensor]) -> dict[str, tuple[float, ...]]:
        """Name of an answer -> what `tell` says of each of its tokens, (K,) a batch; without gradients, in batches as a
        step's.
        """
        made, found = self.rows(answers), {}
        for micro in self.micro_batches(answers):
            batch = self.place(self.lay_out([made[index] for index in micro]))
            with torch.no_grad():
                told_K = tell(batch)
            for place, row in enumerate(batch.row_ids):
                found[row] = tuple(told_K[batch.sequences_K == place].tolist())
        return found

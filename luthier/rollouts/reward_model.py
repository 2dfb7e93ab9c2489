"""Scores of answers by a trained reward model (`loss.kind: reward`): the base with another adapter, and a score head.

It reads what the policy read and said, token by token, at the token that ends the answer. It was trained on answers
that end, so an answer that was cut off is ended for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from luthier.losses.scores import sequence_scores
from luthier.types import Batch, Completion, EncodedRow


class RewardModel:
    """lay_out: rows -> batch that keeps the last token of each, on the model's device. end_id: the token that ends an
    answer; budget: tokens of a batch.
    """

    def __init__(self, model: Any, lay_out: Callable[[Sequence[EncodedRow]], Batch], end_id: int, budget: int) -> None:
        self.model, self.lay_out, self.end_id, self.budget = model, lay_out, end_id, budget

    def scores(
        self, prompts: Sequence[Sequence[int]], said: Sequence[Completion], between: Callable[[], None]
    ) -> list[float]:
        """One an answer, in order. between: called before each batch."""
        found: dict[str, float] = {}
        for rows in self._batches([self._row(str(i), *both) for i, both in enumerate(zip(prompts, said, strict=True))]):
            between()
            batch = self.lay_out(rows)
            with torch.no_grad():
                scores_SC = sequence_scores(self.model, batch, len(batch.row_ids))
            found |= dict(zip(batch.row_ids, scores_SC[:, 0].tolist(), strict=True))
        return [found[str(index)] for index in range(len(said))]

    def _row(self, name: str, prompt: Sequence[int], one: Completion) -> EncodedRow:
        ids = (*prompt, *one.ids, *(() if one.finish == "stop" else (self.end_id,)))
        return EncodedRow(name, ids, (False,) * (len(ids) - 1) + (True,))

    def _batches(self, rows: Sequence[EncodedRow]) -> Iterator[list[EncodedRow]]:
        batch: list[EncodedRow] = []
        for row in rows:
            if batch and sum(len(one.ids) for one in (*batch, row)) > self.budget:
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

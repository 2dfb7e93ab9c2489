"""Loss on the dev split: nats per trained token over all of it, so that batch size and packing cannot change the
figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from luthier.engine.inputs import MakeBatch, RowSet, batches_of
from luthier.engine.memory import out_of_memory_as
from luthier.engine.step import batch_loss_sum
from luthier.losses.registry import LossSum
from luthier.types import Batch


def dev_loss(
    model: nn.Module,
    loss: LossSum,
    rows: RowSet,
    micro_batches: Sequence[Sequence[int]],
    make_batch: MakeBatch,
    device: torch.device,
    stop: Callable[[], bool],
    max_tokens: int | None = None,
) -> float | None:
    """Token-weighted mean loss with dropout off; None when `stop` asked to end in the middle.

    max_tokens: see `batches_of`. Raises OutOfMemory naming the micro-batch that did not fit.
    """
    was_training = model.training
    model.eval()
    total, num_trained = 0.0, 0
    try:
        with torch.no_grad():  # not inference_mode: buffers made under it would poison later training
            for micro in micro_batches:
                if stop():
                    return None
                for batch in batches_of(rows, [micro], make_batch, device, max_tokens):
                    total += _loss_of(model, loss, batch)
                    num_trained += batch.num_trained
    finally:
        model.train(was_training)
    return total / max(1, num_trained)


def _loss_of(model: nn.Module, loss: LossSum, batch: Batch) -> float:
    if not batch.num_trained:
        return 0.0
    with out_of_memory_as(f"a dev batch of {len(batch.ids_T)} tokens", batch.row_ids, len(batch.ids_T)):
        return batch_loss_sum(model, loss, batch).item()

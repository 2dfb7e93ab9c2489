"""Loss on the dev split: nats per trained token over all of it, so that batch size and packing cannot change the
figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from luthier.engine.inputs import MakeBatch, RowSet, batches_of
from luthier.engine.step import batch_loss_sum
from luthier.losses.registry import LossSum


def dev_loss(
    model: nn.Module,
    loss: LossSum,
    rows: RowSet,
    micro_batches: Sequence[Sequence[int]],
    make_batch: MakeBatch,
    device: torch.device,
    stop: Callable[[], bool],
) -> float | None:
    """Token-weighted mean loss with dropout off; None when `stop` asked to end in the middle."""
    was_training = model.training
    model.eval()
    total, num_trained = 0.0, 0
    try:
        with torch.no_grad():  # not inference_mode: buffers made under it would poison later training
            for micro in micro_batches:
                if stop():
                    return None
                (batch,) = batches_of(rows, [micro], make_batch, device)
                if batch.num_trained:
                    total += batch_loss_sum(model, loss, batch).item()
                    num_trained += batch.num_trained
    finally:
        model.train(was_training)
    return total / max(1, num_trained)

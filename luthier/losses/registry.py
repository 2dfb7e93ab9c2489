"""The whole list of losses. A new one = its file + its spec in `config/loss.py` + one line here + one row in the tests.

A loss maps (logits_KV, targets_K) to the sum over the K trained positions; it knows no model, no batch and no trainer.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from luthier.losses.sft import sft_loss_sum

LossSum = Callable[[Tensor, Tensor], Tensor]

LOSSES: dict[str, LossSum] = {"sft": sft_loss_sum}

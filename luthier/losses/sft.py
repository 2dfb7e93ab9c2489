"""Supervised fine-tuning: cross entropy of the tokens that carry loss.

The sum is returned, never a mean: the engine sums over all micro-batches of a step and divides once by the step's
number of trained tokens. A mean per micro-batch weights short answers too much (transformers#34191 and its eight
successors).
Shapes: K trained positions, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor

from luthier.kernels.cross_entropy import cross_entropy_sum


def sft_loss_sum(logits_KV: Tensor, targets_K: Tensor) -> Tensor:
    """Sum over K of -log p(target), in nats, as a float32 scalar. Half-precision logits are raised to float32 first."""
    return cross_entropy_sum(logits_KV, targets_K)

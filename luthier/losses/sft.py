"""Supervised fine-tuning: cross entropy of the tokens that carry loss.

The sum is returned, never a mean: the engine sums over all micro-batches of a step and divides once by the step's
number of trained tokens. A mean per micro-batch weights short answers too much (transformers#34191 and its eight
successors).
Label smoothing as in Szegedy et al. 2016 (arXiv 1512.00567, section 7), which is torch's: the target is
(1 - e) one-hot + e uniform.
Shapes: K trained positions, V vocabulary.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from luthier.kernels.cross_entropy import cross_entropy_sum


def sft_loss_sum(logits_KV: Tensor, targets_K: Tensor) -> Tensor:
    """Sum over K of -log p(target), in nats, as a float32 scalar. Half-precision logits are raised to float32 first."""
    return cross_entropy_sum(logits_KV, targets_K)


def smoothed_sft_sum(logits_KV: Tensor, targets_K: Tensor, smoothing: float) -> Tensor:
    """As above against a target that gives `smoothing` of its weight to all tokens alike."""
    return F.cross_entropy(logits_KV.float(), targets_K, reduction="sum", label_smoothing=smoothing)


def sft_losses(logits_KV: Tensor, targets_K: Tensor, smoothing: float = 0.0) -> Tensor:
    """The summands, (K,): for weights that differ from token to token."""
    return F.cross_entropy(logits_KV.float(), targets_K, reduction="none", label_smoothing=smoothing)

"""The learning rate as a closed form of the step: nothing to save, nothing to drift, a resumed run cannot be off by
one.

The decays are transformers' (linear, cosine with a floor, warmup-stable-decay). WSD: S. Hu et al., MiniCPM (arXiv
2404.06395); its 1 - sqrt decay: A. Haegele et al. (arXiv 2405.18392).
"""

from __future__ import annotations

import math

from luthier.config.train import TrainSpec


def learning_rate_at(step: int, total_steps: int, spec: TrainSpec) -> float:
    """Rate of the `step`-th update (0-based) of `total_steps`.

    Warmup rises linearly over ceil(warmup_ratio x total_steps) updates and reaches the peak on its last one, so that
    no update is spent on rate 0. Then the rate stays (constant), or falls towards lr_min_ratio x the peak: over all
    steps that are left (linear, cosine), or over the last ceil(lr_decay_ratio x total_steps) of them (wsd).
    """
    num_warmup = math.ceil(spec.warmup_ratio * total_steps)
    if step < num_warmup:
        return spec.learning_rate * (step + 1) / num_warmup
    first, shape = num_warmup, spec.lr_scheduler
    if shape == "wsd":
        first, shape = max(first, total_steps - math.ceil(spec.lr_decay_ratio * total_steps)), spec.lr_decay
    if shape == "constant" or step < first:
        return spec.learning_rate
    share = (step - first) / max(1, total_steps - first)
    left = {"linear": 1.0 - share, "cosine": 0.5 * (1.0 + math.cos(math.pi * share)), "1-sqrt": 1.0 - math.sqrt(share)}
    return spec.learning_rate * (spec.lr_min_ratio + (1.0 - spec.lr_min_ratio) * left[shape])

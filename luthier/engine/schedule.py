"""The learning rate as a closed form of the step: nothing to save, nothing to drift, a resumed run cannot be off by
one.
"""

from __future__ import annotations

import math

from luthier.config.train import TrainSpec


def learning_rate_at(step: int, total_steps: int, spec: TrainSpec) -> float:
    """Rate of the `step`-th update (0-based) of `total_steps`.

    Warmup rises linearly over ceil(warmup_ratio x total_steps) updates and reaches the peak on its last one, so that
    no update is spent on rate 0; then linear or cosine towards 0, or constant.
    """
    num_warmup = math.ceil(spec.warmup_ratio * total_steps)
    if step < num_warmup:
        return spec.learning_rate * (step + 1) / num_warmup
    share = (step - num_warmup) / max(1, total_steps - num_warmup)
    factor = {"constant": 1.0, "linear": 1.0 - share, "cosine": 0.5 * (1.0 + math.cos(math.pi * share))}
    return spec.learning_rate * factor[spec.lr_scheduler]

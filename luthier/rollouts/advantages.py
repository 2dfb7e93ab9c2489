"""How good an answer was, for the tokens in it.

group: the answers to one prompt are compared with each other, A = (r - mean) / (deviation + 1e-4) (GRPO, arXiv
2402.03300, section 4.1.2), or A = r - mean (Dr. GRPO, arXiv 2503.20783: dividing weighs prompts by how easy they are).
Shapes: G answers of a group.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_TINY = 1e-4


def group_advantages(rewards_G: Sequence[float], *, scaled: bool) -> list[float]:
    """(G,) one number an answer. scaled: divided by the group's deviation (unbiased)."""
    rewards = np.asarray(rewards_G, dtype=np.float64)
    if is_constant(rewards_G):
        return [0.0] * len(rewards)
    above = rewards - rewards.mean()
    return (above / (rewards.std(ddof=1) + _TINY) if scaled else above).tolist()


def is_constant(rewards: Sequence[float]) -> bool:
    """Whether all are the same, so that nothing can be learnt from comparing them."""
    return len(rewards) < 2 or max(rewards) - min(rewards) < 1e-9

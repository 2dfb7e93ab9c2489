"""How good an answer was, for the tokens in it.

group (grpo): the answers to one prompt are compared with each other, A = (r - mean) / (deviation + 1e-4) (GRPO, arXiv
2402.03300, section 4.1.2), or A = r - mean (Dr. GRPO, arXiv 2503.20783: dividing weighs prompts by how easy they are).
gae (ppo): every token is compared with what a value head expected, by generalised advantage estimation (arXiv
1506.02438, equation 16), A_t = sum over l of (gamma lambda)^l d_(t+l), d_t = r_t + gamma V_(t+1) - V_t. An answer ends
with its last token, also one that was cut off: V is 0 after it.
Shapes: G answers of a group, T tokens of an answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_TINY = 1e-4
_TINY_WIDTH = 1e-8


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


def token_rewards(
    reward: float, logps_T: Sequence[float], ref_logps_T: Sequence[float], kl_weight: float
) -> NDArray[np.float64]:
    """(T,) what each token earned: the answer's reward at its last one, and at each - kl_weight (log p - log p of the
    base), which is the distance to the base as it was sampled (arXiv 1909.08593, equation 2).
    """
    earned_T = np.zeros(len(logps_T))
    if kl_weight:
        earned_T -= kl_weight * (np.asarray(logps_T) - np.asarray(ref_logps_T))
    earned_T[-1] += reward
    return earned_T


def gae(
    rewards_T: NDArray[np.float64], values_T: Sequence[float], gamma: float, gae_lambda: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(T,) advantages, and (T,) what the values should have been: advantage + value."""
    values, advantages_T, following = np.asarray(values_T, dtype=np.float64), np.zeros(len(rewards_T)), 0.0
    next_T = np.append(values[1:], 0.0)
    surprises_T = rewards_T + gamma * next_T - values
    for t in reversed(range(len(rewards_T))):
        advantages_T[t] = following = surprises_T[t] + gamma * gae_lambda * following
    return advantages_T, advantages_T + values


def whitened(advantages: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """The same, of mean 0 and (unbiased) deviation 1 over all tokens of all answers."""
    every = np.concatenate(advantages)
    width = every.std(ddof=1) if len(every) > 1 else 0.0
    return [(one - every.mean()) / (width + _TINY_WIDTH) for one in advantages]

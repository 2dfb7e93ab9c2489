"""Advantages by a value head, against the definition: Schulman et al., arXiv 1506.02438, equations 14 to 16."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.rollouts.advantages import gae, token_rewards, whitened


def defined(rewards, values, gamma, lam) -> list[float]:
    """The sums of equations 14 and 16, for an answer whose end is the end."""
    count = len(rewards)
    after = [*values[1:], 0.0]
    deltas = [rewards[t] + gamma * after[t] - values[t] for t in range(count)]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, count)) for t in range(count)]


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_gae_is_the_papers_sum(gamma, lam):
    rng = np.random.default_rng(3)
    for count in (1, 2, 17):
        rewards, values = rng.normal(size=count), rng.normal(size=count)
        advantages, returns = gae(rewards, tuple(values), gamma, lam)
        assert advantages == pytest.approx(defined(rewards, list(values), gamma, lam), abs=1e-12)
        assert returns == pytest.approx(advantages + values, abs=1e-12)
    if lam == 1.0:  # what came, less what was expected
        came = [sum(gamma ** (k - t) * rewards[k] for k in range(t, count)) for t in range(count)]
        assert returns == pytest.approx(came, abs=1e-12)


def test_a_token_earns_the_distance_it_keeps_and_the_last_one_the_reward():
    got = token_rewards(2.0, (-1.0, -3.0, -0.5), (-1.5, -2.0, -0.5), 0.1)
    assert got == pytest.approx([-0.05, 0.1, 2.0], abs=1e-12)
    assert token_rewards(2.0, (-1.0, -3.0), (), 0.0).tolist() == [0.0, 2.0]


def test_whitened_over_all_tokens_of_the_round():
    rng = np.random.default_rng(0)
    parts = [rng.normal(3, 2, size=n) for n in (4, 1, 9)]
    every = np.concatenate(whitened(parts))
    assert every.mean() == pytest.approx(0, abs=1e-12) and every.std(ddof=1) == pytest.approx(1, abs=1e-6)
    assert np.corrcoef(every, np.concatenate(parts))[0, 1] == pytest.approx(1), "one line for all, not one an answer"
    assert whitened([np.array([5.0])])[0].tolist() == [0.0] and not np.concatenate(whitened([np.ones(3)])).any()

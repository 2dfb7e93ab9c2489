"""The rules of the diagnosis on curves drawn by hand; real runs made to fail are in benchmarks/diagnosis.py."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from luthier.config.load import known_keys
from luthier.plan.diagnose import KINDS, Answers, Evidence, Refused, Step, diagnose


def curve(loss, count: int = 90, noise: float = 0.03, seed: int = 0) -> tuple[Step, ...]:
    """loss(t), t from 0 to 1, with multiplicative noise."""
    rng = random.Random(seed)
    return tuple(Step(i + 1, loss(i / (count - 1)) * math.exp(rng.gauss(0, noise)), 1.0, 1e-4) for i in range(count))


def falling(start: float, floor: float, speed: float):
    return lambda t: floor + (start - floor) * math.exp(-speed * t)


def healthy(**changes) -> Evidence:
    steps = curve(falling(2.0, 0.5, 12))
    made = Evidence(steps, ((30, 0.6), (60, 0.54), (90, 0.53)), 800, 3, 5e-4, lora_r=16, improved=True)
    return replace(made, **changes)


def kinds(evidence: Evidence) -> list[str]:
    return [one.kind for one in diagnose(evidence)]


def spiked(steps: tuple[Step, ...], places: tuple[int, ...], times: float) -> tuple[Step, ...]:
    return tuple(replace(s, loss=s.loss * times) if i in places else s for i, s in enumerate(steps))


@pytest.mark.parametrize("seed", range(20))
def test_a_healthy_run_has_nothing_wrong_however_the_noise_falls(seed):
    assert kinds(healthy(steps=curve(falling(2.0, 0.5, 12), noise=0.1, seed=seed))) == []


STEPS = healthy().steps
CASES = {
    "up and away": (healthy(steps=curve(lambda t: 2 + 3 * t)), "rate_too_high"),
    "up, then stuck": (healthy(steps=curve(lambda t: 2.0 if t < 0.05 else 3.5 if t < 0.3 else 1.8)), "rate_too_high"),
    "down and up again": (
        healthy(steps=curve(lambda t: 2 - 3 * t if t < 0.4 else 0.8 + 1.2 * (t - 0.4))),
        "rate_too_high",
    ),
    "stuck, far too fast": (healthy(improved=False, learning_rate=0.1, usual_rate=5e-4), "rate_too_high"),
    "spikes": (healthy(steps=spiked(STEPS, (40, 55, 71), 5)), "instability"),
    "not a number": (
        healthy(refused=(Refused(12, "loss is nan; no update", ("r7",), is_finite=False),)),
        "instability",
    ),
    "hardly moves": (healthy(steps=curve(lambda t: 2.0 - 0.2 * t), dev=((90, 1.85),)), "rate_too_low"),
    "still falling": (healthy(steps=curve(lambda t: 2.0 - 1.2 * t), dev=((90, 0.8),), num_epochs=1), "underfitting"),
    "flat, wins nothing": (healthy(improved=False), "underfitting"),
    "dev rises": (healthy(dev=((30, 0.5), (60, 0.6), (90, 0.7))), "overfitting"),
    "gap": (healthy(dev=((90, 0.9),)), "overfitting"),
    "by heart": (healthy(steps=curve(falling(2.0, 0.01, 12)), dev=((30, 0.5), (90, 0.9))), "memorised"),
    "copies": (healthy(answers=Answers(num_copied=9, num_long=40)), "memorised"),
    "few rows, gap": (healthy(num_rows=60, dev=((30, 0.5), (90, 0.9))), "too_little_data"),
    "few rows, wins nothing": (healthy(num_rows=60, improved=False), "too_little_data"),
    "forgets": (healthy(general=(0.08, True)), "forgetting"),
    "template": (healthy(markers=("<|start_header_id|>",)), "wrong_template"),
}


@pytest.mark.parametrize("name", CASES)
def test_each_way_to_fail_is_named_with_figures_and_a_next_move(name):
    evidence, expected = CASES[name]
    findings = diagnose(evidence)
    assert findings and findings[0].kind == expected, kinds(evidence)
    assert set(KINDS) >= {one.kind for one in findings}
    for one in findings:
        assert one.evidence and one.moves and not one.moves[0].words.startswith("then")
        assert all(key in known_keys() for move in one.moves for key, _ in move.settings)


def test_every_kind_has_a_case():
    assert {expected for _, expected in CASES.values()} == set(KINDS)


def test_neighbours_of_a_finding_are_none():
    """Just inside the limits nothing is said."""
    assert kinds(healthy(steps=spiked(STEPS, (40,), 5))) == [], "one odd step is not instability"
    assert kinds(healthy(refused=(Refused(40, "loss 9 is 8 sigma above; rows info-1", ("info-1",)),))) == [], (
        "nor is one refused"
    )
    assert kinds(healthy(dev=((30, 0.53), (90, 0.54)))) == [], "1% is no rise"
    assert kinds(healthy(num_rows=60)) == [], "few rows that win are enough"
    assert kinds(healthy(general=(0.08, False))) == [], "the gate says what is too much"
    assert kinds(healthy(answers=Answers(3, 40))) == []
    assert kinds(healthy(dev=((90, 0.9),), num_epochs=1)) == [], "rows seen once say nothing about a gap"


def test_forgetting_is_said_beside_another_finding_and_a_short_run_has_no_curve():
    assert kinds(healthy(dev=((30, 0.5), (90, 0.9)), general=(0.08, True))) == ["overfitting", "forgetting"]
    assert kinds(healthy(steps=curve(lambda t: 2 + 3 * t, count=8), dev=())) == []

"""The climb over rows, rank and epochs: where it stops, what it proposes, what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from luthier.config.project import ProjectSpec
from luthier.plan.ladder import Gain, Rung, advice, changes, climb, first_rung, settings_of
from luthier.stats.intervals import tango
from luthier.stats.paired import compare

ROWS = 400


def project(**sections) -> ProjectSpec:
    return ProjectSpec.model_validate({"model": {"base": "b"}, "data": {"train": ["a.csv"]}, **sections})


def found(wins: int, losses: int = 0, n: int = 100):
    """A comparison of n single dev rows."""
    treated = [1.0] * wins + [0.0] * (n - wins)
    control = [0.0] * wins + [1.0] * losses + [0.0] * (n - wins - losses)
    return compare(treated, control, range(n), binary=True, alpha=0.025)


FIRST = Rung(100, 8)


def walk(skill, first=FIRST, base=0):
    """Climbs where `skill(rung)` dev rows of 100 are right. (gains, rungs in the order they were run)."""
    run = [first]

    def over(axis, lower, upper):
        control = base if lower is None else skill(lower)
        return Gain(axis, lower, upper, found(max(0, skill(upper) - control), max(0, control - skill(upper))))

    def measure(axis, lower, upper):
        assert lower in run, "a rung is held against one that was run"
        run.append(upper)
        return over(axis, lower, upper)

    gains = climb(first, ROWS, measure, lambda rung: over("base", None, rung).is_shown)
    return [over("base", None, first), *gains], run


def test_each_axis_stops_where_the_next_gain_is_inside_the_interval():
    gains, run = walk(lambda rung: 40 + 20 * (rung.rows >= 200) + 20 * (rung.rank >= 16))
    assert run == [
        Rung(100, 8), Rung(200, 8), Rung(400, 8), Rung(400, 16), Rung(400, 32), Rung(400, 16, 2),
    ]  # fmt: skip
    assert [gain.is_shown for gain in gains] == [True, True, False, True, False, False]
    flat, run = walk(lambda rung: 40)
    assert run == [Rung(100, 8), Rung(200, 8), Rung(200, 16), Rung(200, 8, 2)], "the last rung on all rows is saved"
    assert "rank and epochs on 200 of 400 rows" in " ".join(advice(flat, ROWS, beats_base=False))


def test_what_is_worse_ends_an_axis_and_says_so():
    gains, _ = walk(lambda rung: 60 - 30 * (rung.rank > 8) - 30 * (rung.epochs > 1))
    said = [str(gain) for gain in gains]
    assert said[-2].startswith("rank 16 over rank 8 hurts: -30.0 points (95% -39.6 to -21.9)")
    assert said[-1].startswith("2 epochs over 1 epoch hurts")


def test_a_tune_that_beats_nothing_yet_is_given_all_rows_and_all_epochs():
    gains, run = walk(lambda rung: 80 * (rung.epochs >= 4))
    assert run[-3:] == [Rung(400, 16), Rung(400, 8, 2), Rung(400, 8, 4)] and gains[-1].is_shown
    assert changes(project(), gains, ROWS)[0] == [("train.num_epochs", 4)], "rank 16, the default, is not taken away"
    gains, run = walk(lambda rung: 0)
    assert run[-1] == Rung(400, 8, 4)
    assert "no run beats the untuned base: luthier lr-probe" in advice(gains, ROWS, beats_base=False)[0]
    small, _ = walk(lambda rung: 2 * (rung.rows >= 200) + 2 * (rung.rows >= 400))
    assert "no run beats" not in " ".join(advice(small, ROWS, beats_base=True)), (
        "steps too small to show, their sum not"
    )


def test_an_impossible_rung_ends_its_axis_alone():
    run = []

    def measure(axis, lower, upper):
        run.append(upper)
        return None if axis == "rank" else Gain(axis, lower, upper, found(50))

    climb(Rung(100, 8), ROWS, measure, lambda rung: True)
    assert run == [Rung(200, 8), Rung(400, 8), Rung(400, 16), Rung(400, 8, 2), Rung(400, 8, 4)]


def test_a_value_comes_down_only_where_a_gain_is_excluded():
    spec = project(train={"num_epochs": 3}, adapter={"lora_r": 32, "lora_alpha": 64})
    gains, _ = walk(lambda rung: 40)
    settings, kept = changes(spec, gains, ROWS)
    assert settings == [] and kept == [
        "adapter.lora_r stays 32: gains up to 3.7 points over rank 8 are not excluded",
        "train.num_epochs stays 3: gains up to 3.7 points over 1 epoch are not excluded",
    ]
    many = [replace(gain, found=found(round(100 * gain.found.delta), n=2000)) for gain in gains]
    settings, kept = changes(spec, many, ROWS)
    assert settings == [("adapter.lora_r", 8), ("adapter.lora_alpha", 16.0), ("train.num_epochs", 1)] and not kept


def test_epochs_over_a_part_of_the_rows_become_as_many_steps_over_all():
    gains, run = walk(lambda rung: 40 + 20 * rung.epochs)
    assert run[-1] == Rung(200, 8, 4)
    assert dict(changes(project(), gains, ROWS)[0])["train.num_epochs"] == 2


@pytest.mark.parametrize(
    ("adapter", "settings"),
    [
        ({"lora_r": 16, "lora_alpha": 32}, {"adapter.lora_r": 8, "adapter.lora_alpha": 16.0}),
        ({"method": "rslora", "lora_r": 16}, {"adapter.lora_r": 8}),
        ({"method": "houlsby"}, {"adapter.lora_r": 8}),
        ({"method": "vera", "lora_r": 256}, {}),
        ({"method": "full"}, {}),
    ],
)
def test_the_first_rung_has_rank_8_where_ranks_are_alike_and_alpha_follows(adapter, settings):
    spec = project(adapter=adapter)
    assert settings_of(spec, first_rung(spec, 100)) == settings | {"train.num_epochs": 1}


def test_what_a_person_reads():
    gain = Gain("rows", Rung(250, 8), Rung(500, 8), found(12, 2))
    low, high = (f"{100 * bound:+.1f}" for bound in tango(12, 2, 100))
    figures = f"+10.0 points (95% {low} to {high})"
    assert str(gain) == f"more rows still help: {figures} from 250 to 500 rows (rank 8, 1 epoch)"
    nothing = Gain("rank", Rung(500, 8), Rung(500, 16), found(3, 3))
    assert str(nothing).startswith("rank 16 over rank 8 is not shown to help: +0.0 points (95% -")
    said = advice([Gain("base", None, Rung(250, 8), found(50)), gain], 500, beats_base=True)
    assert said[0] == "the curve still rises at all rows: more of them are likely to help, where there is room"
    assert said[-1].startswith("100 dev rows: true gains below about 1")

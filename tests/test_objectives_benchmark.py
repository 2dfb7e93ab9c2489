"""benchmarks/objectives.py: its rows ask what they say, its project files load, its table tells a gain
from noise."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest

from luthier.config.load import load_project
from luthier.config.loss import OPTIONS

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark():
    """(objectives, objective_rows) as modules."""
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("objectives"), importlib.import_module("objective_rows")
    sys.path.remove(str(FOLDER))


def test_neither_length_nor_chance_ranks_the_pairs(benchmark):
    _, rows = benchmark
    pairs = rows.make_rows("dpo", "dev") + rows.make_rows("dpo", "train")
    longer = sum(len(row["chosen"]) > len(row["rejected"]) for row in pairs) / len(pairs)
    assert 0.4 < longer < 0.6
    urgent = [any(words in row["prompt"] for words in rows.URGENT) for row in pairs]
    assert all((len(row["chosen"]) < len(row["rejected"])) is flag for row, flag in zip(pairs, urgent, strict=True))
    train, dev = ({row["prompt"] for row in rows.make_rows("sft", split)} for split in ("train", "dev"))
    assert not train & dev and len(train) == rows.COUNTS["train"] and len(dev) == rows.COUNTS["dev"]


def test_the_log_that_start_learns_from_is_mostly_broken(benchmark):
    _, rows = benchmark

    def parses(text):
        try:
            return isinstance(json.loads(text), dict)
        except ValueError:
            return False

    logged = [parses(row["completion"]) for row in rows.make_rows("start", "train")]
    assert 0.3 < sum(logged) / len(logged) < 0.5
    assert all(parses(row["completion"]) for row in rows.make_rows("grpo", "train"))


def test_every_objective_has_a_project_file_that_loads(benchmark, tmp_path, tiny_base):
    objectives, rows = benchmark
    kinds = set()
    for name in rows.SETTINGS:
        path = rows.write_project(tmp_path / name.replace(", ", "-"), name, str(tiny_base))
        kinds.add(load_project(path).spec.loss.kind)
        assert name in objectives.MEASURES
    assert kinds == set(OPTIONS)


def test_what_was_made_with_other_settings_is_not_taken_for_a_result(benchmark, tmp_path):
    _, rows = benchmark
    made = tmp_path / "out" / "train-old"
    for changes, stands in (({}, True), ({"seed": 7}, False)):
        rows.write_project(tmp_path, "dpo", "base")
        made.mkdir(parents=True)
        rows.write_project(tmp_path, "dpo", "base", changes)
        assert made.exists() is stands
        shutil.rmtree(tmp_path)


@pytest.mark.parametrize(
    ("name", "difference", "moved"),
    [
        ("dpo", [0.2, 0.05, 0.35], True), ("dpo", [0.2, -0.05, 0.45], False), ("dpo", [-0.2, -0.35, -0.05], False),
        ("regress", [-0.2, -0.35, -0.05], True), ("regress", [0.2, 0.05, 0.35], False),
    ],
)  # fmt: skip
def test_a_measure_has_moved_when_its_interval_is_on_the_better_side(benchmark, name, difference, moved):
    objectives, _ = benchmark
    assert objectives.has_moved(name, difference) is moved
    one = {
        "before": 0.5, "after": 0.7, "difference": difference, "steps": 3, "tokens": 1000, "peak_bytes": 2**30,
        "speed": {"ours": 300.0, "trl": 100.0, "ratio": 3.0},
    }  # fmt: skip
    lines = objectives.table({name: one}).splitlines()
    row = next(line for line in lines if line.startswith(f"| `{name}`"))
    assert "| 1.00 | 300 | 100 | 3.00 |" in row and len(row.split("|")) == len(objectives.HEADERS) + 2
    assert f"Not beyond its interval: {'none' if moved else name}." in lines


def test_the_difference_is_paired_by_row(benchmark):
    objectives, _ = benchmark
    ours = {"before": [0.0, 1.0, 0.0, 1.0], "after": [0.5, 1.5, 0.5, 1.5]}
    found = objectives.effect("regress", {}, ours)
    assert found["difference"] == [0.5, 0.5, 0.5] and found["held_out"] == 4


def test_the_first_step_is_no_part_of_a_speed(benchmark):
    objectives, _ = benchmark
    assert objectives.speed_of([[10.0, 0.0], [11.0, 5.0], [13.0, 9.0]], [900, 200, 100]) == 100.0

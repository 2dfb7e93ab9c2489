"""What is recommended exists, is allowed, suits the data, and has a source; what the user states stays."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from luthier.config.checks import find_problems
from luthier.config.load import known_keys
from luthier.config.project import ProjectSpec
from luthier.config.yaml_file import read_yaml
from luthier.plan.known import known_shapes
from luthier.plan.recommend import FILE, MICRO, WINDOW, recommend
from luthier.plan.workload import Workload, estimate

TABLE = read_yaml(FILE)[0]
SMALL, LARGE = known_shapes("smollm2-135m"), known_shapes("llama-3.1-8b")


def work(rows: int, tokens: int = 130, answer: int = 25) -> Workload:
    lengths = [tokens - 10, tokens, tokens + 10]
    packs = max(1, rows * tokens // 1024)
    return estimate(
        lengths, answer / tokens, num_rows=rows, micro_batches=packs, dev_share=0.1, budget=1024, source="test"
    )


def project(**sections) -> ProjectSpec:
    return ProjectSpec.model_validate({"model": {"base": "b"}, "data": {"train": ["a.csv"]}, **sections})


def values(workload, shapes=SMALL, spec=None, stated=()) -> dict[str, object]:
    made = recommend(spec or project(), frozenset(stated), workload, shapes)
    return {one.key: one.value for one in made.proposals}


def test_every_entry_names_a_key_a_source_and_ends_in_a_row_for_the_rest():
    for entry in TABLE["knobs"]:
        assert entry["key"] in known_keys() or entry["key"] == "rows_per_step"
        assert len(entry["source"]) > 20 and entry["range"]
        assert "when" not in entry["rows"][-1] and all("when" in row for row in entry["rows"][:-1])
        assert all(row.get("none") or row["why"] for row in entry["rows"])
    assert all(row["when"] and row["source"] for row in TABLE["advice"])


@pytest.mark.parametrize(
    ("rows", "answer", "shapes"), itertools.product((30, 700, 3000, 200_000), (4, 60, 400), (SMALL, LARGE))
)
def test_what_is_proposed_is_a_project_that_loads(rows, answer, shapes):
    sections: dict[str, dict[str, object]] = {}
    for key, value in values(work(rows, 40 + 2 * answer, answer), shapes).items():
        section, name = key.split(".")
        sections.setdefault(section, {})[name] = value
    spec = project(**sections)
    assert spec.train.micro_batch_tokens >= spec.train.sequence_len >= 50 + 2 * answer, "the longest row fits both"
    assert find_problems(spec) == []
    assert 1e-6 <= spec.train.learning_rate <= 1e-3 and 1 <= spec.train.num_epochs <= 5
    assert spec.adapter.lora_alpha in (spec.adapter.lora_r, 2 * spec.adapter.lora_r)


def test_knobs_follow_the_data_and_the_base():
    few, many = values(work(300)), values(work(100_000, tokens=600, answer=300), LARGE)
    assert (few["train.num_epochs"], many["train.num_epochs"]) == (3, 1)
    assert few["adapter.lora_dropout"] > many["adapter.lora_dropout"] == 0
    assert few["train.learning_rate"] > many["train.learning_rate"]
    assert few[MICRO] * few[WINDOW] == pytest.approx(4 * 130, rel=0.15), "4 rows a step"
    assert many[MICRO] * many[WINDOW] == pytest.approx(64 * 600, rel=0.15), "64 rows a step"
    assert values(work(700, answer=5))["adapter.lora_r"] == 8 and many["adapter.lora_r"] == 64
    assert few["train.early_stopping_patience"] == 2 and many["train.early_stopping_patience"] is None


def test_short_rows_make_small_steps_also_where_long_ones_were_allowed():
    """A budget must hold the longest row there may be: that length comes down, unless the user has stated it."""
    short = values(work(300, tokens=30, answer=5))
    assert short["train.sequence_len"] == short[MICRO] == 128 and short[WINDOW] == 1
    spec = project(train={"sequence_len": 512})
    kept = values(work(300, tokens=30, answer=5), spec=spec, stated=("train.sequence_len",))
    assert "train.sequence_len" not in kept and kept[MICRO] == 512


def test_steps_on_the_border_belong_to_the_upper_row():
    """[from, below]: 2,000 rows are no longer few."""
    assert values(work(1999))["train.num_epochs"] == 3 and values(work(2000))["train.num_epochs"] == 2


def test_what_the_user_states_stays_and_the_rest_suits_it():
    spec = project(train={"num_epochs": 1, "micro_batch_tokens": 256}, adapter={"lora_r": 4})
    stated = {"train.num_epochs", MICRO, "adapter.lora_r"}
    made = recommend(spec, frozenset(stated), work(700), SMALL)
    found = {one.key: one for one in made.proposals}
    assert all(found[key].stated and not found[key].changes for key in stated)
    assert found["adapter.lora_alpha"].value == 8 and found["train.early_stopping_patience"].value is None
    assert found[MICRO].now == 256 and found[WINDOW].value == 2


@pytest.mark.parametrize("method", ["full", "layers", "head"])
def test_methods_without_a_rank_get_none_proposed_and_a_smaller_rate(method):
    changes = {"top_layers": 2} if method == "layers" else {}
    found = values(work(700), spec=project(adapter={"method": method, **changes}))
    assert not [key for key in found if key.startswith("adapter.lora")]
    assert found["train.learning_rate"] <= values(work(700))["train.learning_rate"] / 10


def test_advice_that_no_knob_gives():
    said = [text for text, _ in recommend(project(), frozenset(), work(40), LARGE).advice]
    assert any("under 100" in text for text in said) and any("smaller base" in text for text in said)
    assert not recommend(project(), frozenset(), work(9000), LARGE).advice
    assert not recommend(project(), frozenset(), replace(work(4000)), SMALL).advice

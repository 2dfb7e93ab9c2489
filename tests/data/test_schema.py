"""A JSON Schema reaches the prompt, the types and the quarantine: training reads exactly what judging will ask."""

import json

from luthier.config.data import DataSpec
from luthier.data.prepare import prepare
from luthier.data.stored import read_rows
from luthier.evaluate.cases import cases_from_rows
from tests.data.stub import WordCodec

SCHEMA = {"type": "object", "properties": {"kind": {"enum": ["a", "b"]}, "level": {"enum": [1, 2]}}}


def prepared(tmp_path, **settings):
    lines = ["text,kind,level", *(f"word{i} zip{i * 7} tok{i * 13},{'ab'[i % 2]},{i % 2 + 1}" for i in range(40))]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    out = tmp_path / "out"
    out.mkdir()
    spec = DataSpec(
        train=("rows.csv",), prompt="{text}", json_fields=("kind", "level"), json_schema="schema.json", **settings
    )
    prepare(spec, codec=WordCodec(), sequence_len=4096, out=out, base_dir=tmp_path)
    return out


def test_csv_text_becomes_the_integer_that_the_enum_asks_for(tmp_path):
    answers = [json.loads(row.answer) for row in read_rows(prepared(tmp_path), "train")]
    assert answers and all(isinstance(answer["level"], int) for answer in answers)


def test_training_prompts_equal_the_prompts_of_the_evaluation(tmp_path):
    rows = read_rows(prepared(tmp_path, system="You label."), "test")
    for row, case in zip(rows, cases_from_rows(rows, SCHEMA), strict=True):
        assert case.prompt == row.prompt
        assert "level" in row.prompt[0]["content"] and row.prompt[0]["content"].startswith("You label.")


def test_a_system_message_that_names_every_field_is_left_alone(tmp_path):
    rows = read_rows(prepared(tmp_path, system="kind: a or b, level: 1 or 2"), "train")
    assert {row.prompt[0]["content"] for row in rows} == {"kind: a or b, level: 1 or 2"}

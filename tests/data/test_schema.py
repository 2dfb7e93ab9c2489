"""A JSON Schema reaches the prompt, the types and the quarantine: training reads exactly what judging will ask."""

import json

import pytest

from luthier.chat.schema_prompt import with_schema
from luthier.config.data import DataSpec
from luthier.data.answers import load_schema
from luthier.data.prepare import prepare
from luthier.data.stored import read_rows
from luthier.errors import DataError
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


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "array", "items": {"enum": [1]}}, '"array"'),
        ({"properties": {"kind": True, "level": False}}, "- kind (optional): any JSON value"),
    ],
)
def test_any_schema_is_told_as_what_it_is(schema, words):
    """One without fields is no "JSON object with these fields"; told once, however often it is put in."""
    once = with_schema((), schema)
    assert words in once[0]["content"] and with_schema(once, schema) == once
    assert ("one JSON object" in once[0]["content"]) is ("properties" in schema)


def test_a_schema_that_says_nothing_is_refused(tmp_path):
    (tmp_path / "schema.json").write_text("true")
    with pytest.raises(DataError, match="says nothing about answers"):
        load_schema(tmp_path / "schema.json")


def test_a_system_message_that_names_every_field_is_left_alone(tmp_path):
    rows = read_rows(prepared(tmp_path, system="kind: a or b, level: 1 or 2"), "train")
    assert {row.prompt[0]["content"] for row in rows} == {"kind: a or b, level: 1 or 2"}

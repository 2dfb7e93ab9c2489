"""Every format, from keys to canonical messages; every way a row can fail to fit."""

from __future__ import annotations

import json

import pytest

from luthier.config.data import DataSpec
from luthier.data.answers import Answerer
from luthier.data.formats import FORMATS, ColumnsReader, recognise, to_content, vote
from luthier.data.load import look
from luthier.data.templates import parse_template
from luthier.data.turns import RowError, check_order, read_turns
from luthier.errors import ConfigError, DataError

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
PLAIN = (USER, ANSWER)

# kind, raw row, messages or text
ROWS = [
    ("messages", {"messages": [USER, ANSWER], "x": 1}, PLAIN),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, ANSWER]}, PLAIN),
    ("messages", {"conversations": [USER, ANSWER]}, PLAIN),
    ("sharegpt", {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, PLAIN),
    ("alpaca", {"instruction": "q", "input": "", "output": "a"}, PLAIN),
    ("alpaca", {"instruction": "q", "response": "a"}, PLAIN),
    ("alpaca", {"instruction": "i", "input": "x", "output": "a"}, ({**USER, "content": "i\n\nx"}, ANSWER)),
    ("alpaca", {"instruction": "q", "output": "a", "history": [["q", "a"]]}, PLAIN + PLAIN),
    ("prompt_completion", {"prompt": "q", "completion": "a"}, PLAIN),
    ("prompt_completion", {"Question": "q", "Answer": "a"}, PLAIN),
    ("prompt_completion", {"prompt": [USER], "completion": [ANSWER]}, PLAIN),
    ("prompt_completion", {"input": "q", "output": "a"}, PLAIN),
    ("columns", {"text": "q", "category": "a"}, PLAIN),
    ("text", {"text": "just text"}, "just text"),
]


@pytest.mark.parametrize(("kind", "row", "wanted"), ROWS)
def test_rows_become_messages(kind, row, wanted):
    mapping = vote([row] * 3, "f")
    assert mapping.kind == kind and kind in FORMATS
    messages, text = to_content(row, mapping)
    assert (text or messages) == wanted
    if kind != "columns":
        assert vote([row], "f", forced=kind).kind == kind


def test_system_message_comes_from_the_row_or_the_config():
    row = {"instruction": "q", "output": "a", "system": "mine"}
    messages, _ = to_content(row, vote([row], "f"), system="yours")
    assert messages == ({"role": "system", "content": "mine"}, *PLAIN)
    row = {"prompt": "q", "completion": "a"}
    assert to_content(row, vote([row], "f"), system="yours")[0][0]["content"] == "yours"


def test_vote_ignores_a_few_odd_rows_and_names_the_columns_when_lost():
    rows = [{"prompt": "q", "completion": "a"}] * 3 + [{"foo": 1}, {"text": "t"}]
    assert vote(rows, "f").kind == "prompt_completion"
    with pytest.raises(DataError, match="subject, body") as caught:
        vote([{"subject": "s", "body_html": "b"}], "f")
    assert "data.prompt" in caught.value.hint
    for other in ({"chosen": "a", "rejected": "b"}, {"input_ids": [1], "labels": [1]}):
        with pytest.raises(DataError):
            vote([other], "f")
    with pytest.raises(DataError, match="alpaca"):
        vote([{"prompt": "q", "completion": "a"}], "f", forced="alpaca")


@pytest.mark.parametrize(
    ("roles", "words"),
    [
        ("user user assistant", "two user turns"),
        ("assistant user", "first turn"),
        ("user assistant system assistant", "system message stands after"),
        ("user assistant user", "no answer"),
        ("user", "no answer"),
        ("system", "nothing but"),
        ("user assistant assistant", "two assistant turns"),
        ("user tool assistant", "tool turn right after user"),
    ],
)
def test_wrong_orders(roles, words):
    with pytest.raises(RowError, match=words):
        check_order(tuple({"role": role, "content": "x"} for role in roles.split()))


def test_right_orders():
    for roles in ("user assistant", "system user assistant user assistant", "user assistant tool assistant"):
        check_order(tuple({"role": role, "content": "x"} for role in roles.split()))


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ([], "no turns"),
        ("text", "no turns"),
        ([{"role": "narrator", "content": "x"}], "unknown role"),
        ([{"role": None, "content": "x"}], "unknown role"),
        ([{"role": "user"}], "no text content"),
        ([{"role": "assistant", "content": None, "tool_calls": [{}]}], "tool"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "not text"),
        (["x"], "not an object"),
    ],
)
def test_bad_turns(turns, words):
    with pytest.raises(RowError, match=words):
        read_turns(turns, "role", "content")


def test_templates_read_columns_and_nothing_else():
    template = parse_template("{{{a.b}}} and {c d}")
    assert template.fields == ("a.b", "c d")
    assert template.fill({"a.b": 1, "c d": None}) == "{1} and "
    for wrong in ("{", "a } b", "{}", "{a"):
        with pytest.raises(ConfigError):
            parse_template(wrong)


def test_json_answers_follow_the_schema():
    schema = {"properties": {"n": {"type": "integer"}, "ok": {"type": "boolean"}, "x": {"type": "number"}}}
    reader = ColumnsReader("{t}", Answerer(None, ("n", "ok", "x", "s"), schema))
    row = {"t": "hello", "n": " 2", "ok": "Yes", "x": "1.5", "s": "NA"}
    assert json.loads(reader.content(row)[0][1]["content"]) == {"n": 2, "ok": True, "x": 1.5, "s": "NA"}
    for change, words in (
        ({"n": "two"}, "expected integer"),
        ({"ok": "maybe"}, "true or false"),
        ({"n": ""}, "empty answer"),
        ({"t": " "}, "empty prompt"),
    ):
        with pytest.raises(RowError, match=words):
            reader.content({**row, **change})
    with pytest.raises(RowError, match="missing"):
        reader.content({"t": "x"})
    with pytest.raises(DataError, match="no column 't'"):
        reader.check([{"text": "x"}], "f")


def test_prompts_only():
    for row in (
        {"prompt": "q"},
        {"text": "q"},
        {"messages": [USER]},
        {"instruction": "q"},
        {"prompt": "q", "answer": "a"},
    ):
        mapping = recognise(row, needs_answer=False)
        assert mapping and to_content(row, mapping, needs_answer=False)[0] == (USER,)


def test_look_for_init(tmp_path):
    (tmp_path / "a.csv").write_text("text,category\nq,a\n")
    seen = look(tmp_path / "a.csv")
    assert (
        seen.columns == ("text", "category") and str(seen.mapping) == "columns (prompt = text, completion = category)"
    )
    (tmp_path / "b.csv").write_text("subject,grade\nq,a\n")
    assert look(tmp_path / "b.csv").mapping is None and "subject" in look(tmp_path / "b.csv").problem
    assert DataSpec(train=("a.csv",)).format == "auto"

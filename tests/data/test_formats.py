"""Every format, from keys to canonical messages; every way a row can fail to fit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import pytest

from luthier.config.data import DataSpec, FormatName
from luthier.data.answers import Answerer
from luthier.data.formats.format import Content
from luthier.data.formats.registry import FORMATS, ColumnsReader, preferred, recognise, to_content, vote
from luthier.data.load import look
from luthier.data.templates import parse_template
from luthier.data.turns import RowError, check_order, read_turns
from luthier.errors import ConfigError, DataError

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
OTHER = {"role": "assistant", "content": "b"}
SYSTEM = {"role": "system", "content": "s"}
PLAIN = (USER, ANSWER)
UNTRAINED = {**ANSWER, "train": False}
FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}
TOOL = {"type": "function", "function": FUNCTION}
ASKED = {**USER, "tools": [TOOL]}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "2"}
CALLED = (ASKED, CALLS, RESULT, ANSWER)
WITH_ID = {"id": "c1", **CALL}
WITH_IDS = (ASKED, {**CALLS, "tool_calls": [WITH_ID]}, {**RESULT, "tool_call_id": "c1"}, ANSWER)
PAIR = Content(PLAIN, rejected=(OTHER,))
HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}
ARGUMENTS = {"name": "f", "arguments": '{"x": 1}'}


def asked(*messages, **columns):
    return {"messages": list(messages), **columns}


# kind, raw row, what it says
ROWS = [
    ("messages", asked(USER, ANSWER, x=1), PLAIN),
    ("messages", asked({"role": "user", "content": [{"type": "text", "text": "q"}]}, ANSWER), PLAIN),
    ("messages", {"conversations": [USER, ANSWER]}, PLAIN),
    ("messages", asked(USER, ANSWER, system="s"), (SYSTEM, *PLAIN)),
    ("messages", {"messages": json.dumps([USER, ANSWER])}, PLAIN),
    ("messages", asked(USER, {**CALLS, "content": None}, RESULT, ANSWER, tools=[TOOL]), CALLED),
    ("messages", asked(USER, {**CALLS, "tool_calls": [{"function": ARGUMENTS}]}, RESULT, ANSWER,
                       tools=json.dumps([TOOL])), CALLED),
    ("messages", asked(USER, {"role": "assistant", "content": None, "function_call": ARGUMENTS}, RESULT, ANSWER,
                       functions=[FUNCTION]), CALLED),
    ("messages", asked(USER, {**ANSWER, "weight": 0}, USER, OTHER), (USER, UNTRAINED, USER, OTHER)),
    ("sharegpt", {"conversations": [HUMAN, GPT]}, PLAIN),
    ("sharegpt", {"conversations": [HUMAN, GPT], "system": "s"}, (SYSTEM, *PLAIN)),
    ("sharegpt", {"conversation": [{"human": "q", "assistant": "a"}, {"human": "q", "assistant": "b"}]},
     (*PLAIN, USER, OTHER)),
    ("sharegpt", {"conversations": [HUMAN, {"from": "function_call", "value": json.dumps(CALL["function"])},
                                    {"from": "observation", "value": "2"}, GPT], "tools": json.dumps([FUNCTION])},
     CALLED),
    ("anthropic", {"system": [{"type": "text", "text": "s"}], "tools": [{"name": "f", "description": "d",
                   "input_schema": FUNCTION["parameters"]}], "messages": [USER,
                   {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "f", "input": {"x": 1}}]},
                   {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "2"}]},
                   {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]}, (SYSTEM, *WITH_IDS)),
    ("alpaca", {"instruction": "q", "input": "", "output": "a"}, PLAIN),
    ("alpaca", {"INSTRUCTION": "q", "RESPONSE": "a"}, PLAIN),
    ("alpaca", {"instruction": "i", "input": "x", "output": "a"}, ({**USER, "content": "i\n\nx"}, ANSWER)),
    ("alpaca", {"instruction": "q", "output": "a", "history": [["q", "a"]], "system": "s"}, (SYSTEM, *PLAIN, *PLAIN)),
    ("prompt_completion", {"prompt": "q", "completion": "a"}, PLAIN),
    ("prompt_completion", {"Question": "q", "Answer": "a"}, PLAIN),
    ("prompt_completion", {"prompt": [USER], "completion": [ANSWER]}, PLAIN),
    ("prompt_completion", {"prompt": [USER, ANSWER, USER], "completion": "b"}, (USER, UNTRAINED, USER, OTHER)),
    ("prompt_completion", {"input": "q", "output": "a"}, PLAIN),
    ("prompt_completion", {"query": "q", "response": "b", "history": [["q", "a"]]}, (*PLAIN, USER, OTHER)),
    ("prompt_completion", {"system_prompt": "s", "question": "q", "response": "a"}, (SYSTEM, *PLAIN)),
    ("prompt_completion", {"prompt": "[1, 2]", "completion": '{"role": "x"}'},
     ({**USER, "content": "[1, 2]"}, {**ANSWER, "content": '{"role": "x"}'})),
    ("columns", {"text": "q", "category": "a"}, PLAIN),
    ("text", {"text": "just text"}, Content(text="just text")),
    ("segments", {"segments": [{"text": "q ", "label": False}, {"text": "a", "label": True}]},
     Content(text="q a", segments=(("q ", False), ("a", True)))),
    ("preference", {"prompt": "q", "chosen": "a", "rejected": "b"}, PAIR),
    ("preference", {"question": "q", "chosen_response": "a", "rejected_response": "b"}, PAIR),
    ("preference", {"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]}, PAIR),
    ("preference", asked(USER, ANSWER, prompt="q", chosen=[USER, ANSWER], rejected=[USER, OTHER]), PAIR),
    ("preference", {"chosen": [USER, ANSWER], "rejected": [USER, OTHER]}, PAIR),
    ("preference", {"chosen": [USER, ANSWER, USER, ANSWER], "rejected": [USER, ANSWER, USER, OTHER]},
     Content((USER, UNTRAINED, USER, ANSWER), rejected=(OTHER,))),
    ("preference", {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "b"}}, PAIR),
    ("preference", {"instruction": "i", "input": "x", "chosen": "a", "rejected": "b"},
     Content(({**USER, "content": "i\n\nx"}, ANSWER), rejected=(OTHER,))),
    ("preference", asked(USER, ANSWER, rejected_response="b"), PAIR),
    ("preference", asked(USER, ANSWER, rejected_messages=[USER, OTHER]), PAIR),
    ("preference", {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}, PAIR),
    ("preference", {"system": "s", "prompt": [USER, ANSWER, USER], "chosen": "a", "rejected": "b"},
     Content((SYSTEM, USER, UNTRAINED, USER, ANSWER), rejected=(OTHER,))),
    ("ranked", {"prompt": "q", "answers": [{"answer": "b", "rank": 2.0}, {"answer": "a", "rank": 1.0}]}, PAIR),
    ("ranked", {"prompt": [USER, ANSWER, USER], "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 7},
                {"answer": "c", "rank": 2}], "system": "s"},
     Content((SYSTEM, USER, UNTRAINED, USER, ANSWER), rejected=(OTHER,), beside=("answers",))),
    ("ranked", {"instruction": "i", "input": "x", "completions": [{"response": "b", "score": 1.5},
                {"response": "a", "score": 8}]}, Content(({**USER, "content": "i\n\nx"}, ANSWER), rejected=(OTHER,))),
    ("ranked", {"prompt": "q", "responses": ["b", "a"], "scores": [0.1, 0.9]}, PAIR),
    ("ranked", {"prompt": "q", "answers": [{"text": "b", "thumb": "down"}, {"text": "a", "thumb": "Up"}]}, PAIR),
    ("ranked", {"prompt": "q", "answers": ["b", "a"], "thumbs": ["down", "up"]}, PAIR),
    ("ranked", {"prompt": "q", "candidates_completions": '["b", "a"]', "ranks": "[2, 1]"}, PAIR),
    ("kto", {"prompt": "q", "completion": "a", "label": True}, Content(PLAIN, label=True)),
    ("kto", {"prompt": "q", "completion": "a", "label": "False"}, Content(PLAIN, label=False)),
    ("kto", {"instruction": "q", "output": "a", "kto_tag": False}, Content(PLAIN, label=False)),
    ("kto", asked(USER, ANSWER, label=False), Content(PLAIN, label=False)),
    ("stepwise", {"prompt": "q", "completions": ["x", "y"], "labels": [True, False]},
     Content((USER, {**ANSWER, "content": "x\ny"}), steps=(("x", True), ("y", False)))),
    ("explainchoice", {"question": "q", "choices": ["x", "y"], "solution": "x", "explanation": "a"},
     ({**USER, "content": "q\n\n- x\n- y"}, ANSWER)),
    ("concisechoice", {"question": "q", "choices": ["x", "y"], "solution": "a"},
     ({**USER, "content": "q\n\n- x\n- y"}, ANSWER)),
    ("summarizetldr", {"article": "q", "summary": "a"}, PLAIN),
    ("camel_ai", {"message_1": "q", "message_2": "a"}, PLAIN),
    ("metharme", {"prompt": "q", "generation": "a"}, PLAIN),
    ("reflection", {"instruction": "q", "output": "x", "reflection": "y", "corrected": "a"},
     (USER, {**ANSWER, "content": "x\n\ny\n\na"})),
    ("context_qa", {"article": "c", "question": "q", "answer": "a"}, ({**USER, "content": "c\n\nq"}, ANSWER)),
    ("context_qa.load_v2", {"context": "c", "question": "q", "answer": "a"}, ({**USER, "content": "c\n\nq"}, ANSWER)),
    ("creative_acr", {"instruction": "q", "answer": "x", "critique": "y", "revision": "a"}, PLAIN),
    ("jeopardy", {"category": "c", "question": "q", "answer": "a"}, ({**USER, "content": "c: q"}, ANSWER)),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "row", "wanted"), ROWS)
def test_rows_become_messages(kind, row, wanted):
    wanted = wanted if isinstance(wanted, Content) else Content(wanted)
    mapping = vote([row] * 3, "f", forced=kind if FORMATS[kind].by_name_only else "auto")
    assert mapping.kind == kind
    assert to_content(row, mapping) == wanted
    if kind != "columns":
        assert to_content(row, vote([row], "f", forced=kind)) == wanted


def test_every_format_stands_in_the_matrix_and_in_the_config():
    assert {kind for kind, _, _ in ROWS} == set(FORMATS)
    assert set(get_args(FormatName)) == {"auto", *FORMATS}


def test_the_page_of_formats_is_true():
    page = (Path(__file__).resolve().parents[2] / "docs/data_formats.md").read_text()
    for name, one in FORMATS.items():
        holds = ", ".join(sorted(one.holds)) if one.write else "read only"
        assert f"| `{name}` | {one.about} | {holds} |\n" in page, name


def test_system_message_comes_from_the_row_or_the_config():
    row = {"instruction": "q", "output": "a", "system": "mine"}
    messages = to_content(row, vote([row], "f"), system="yours").messages
    assert messages == ({"role": "system", "content": "mine"}, *PLAIN)
    row = {"prompt": "q", "completion": "a"}
    assert to_content(row, vote([row], "f"), system="yours").messages[0]["content"] == "yours"


def test_vote_ignores_a_few_odd_rows_and_names_the_columns_when_lost():
    rows = [{"prompt": "q", "completion": "a"}] * 3 + [{"foo": 1}, {"text": "t"}]
    assert vote(rows, "f").kind == "prompt_completion"
    with pytest.raises(DataError, match="subject, body") as caught:
        vote([{"subject": "s", "body_html": "b"}], "f")
    assert "data.prompt" in caught.value.hint
    with pytest.raises(DataError, match="token ids"):
        vote([{"input_ids": [1], "labels": [1]}], "f")
    with pytest.raises(DataError, match="alpaca"):
        vote([{"prompt": "q", "completion": "a"}], "f", forced="alpaca")


def test_a_class_beside_prompt_and_completion_is_no_judgement():
    for label in (0, 1, "spam", "yes"):
        assert vote([{"prompt": "q", "completion": "a", "label": label}], "f").kind == "prompt_completion"
    row = {"prompt": "q", "completion": "a", "kto_tag": 0}
    assert to_content(row, vote([row], "f")) == Content(PLAIN, label=False)
    for label, judged in ((1, True), (0.0, False), ("1", True)):  # named in the config, it is one
        row = {"prompt": "q", "completion": "a", "label": label}
        assert to_content(row, vote([row], "f", forced="kto")) == Content(PLAIN, label=judged)


def test_of_two_columns_that_differ_in_case_the_one_in_small_letters_is_read():
    for row in ({"prompt": "q", "Prompt": "x", "completion": "a"}, {"Prompt": "x", "prompt": "q", "completion": "a"}):
        assert to_content(row, vote([row], "f")) == Content(PLAIN)


def test_answers_without_ranks_are_no_preference():
    for answers in (["a", "b"], [{"text": "a"}, {"text": "b"}]):
        mapping = recognise({"question": "q", "answers": answers})
        assert mapping is None or mapping.kind != "ranked"


@pytest.mark.parametrize(
    ("thumbs", "why"),
    [
        (("up", "up"), "none is better"),
        (("up", "sideways"), "answer 2 has no rank: 'sideways'"),
        (("up", None), "no rank"),
    ],
)
def test_thumbs_that_prefer_nothing_are_named(thumbs, why):
    row = {"prompt": "q", "answers": [{"text": text, "thumb": thumb} for text, thumb in zip("ab", thumbs, strict=True)]}
    with pytest.raises(RowError, match=why):
        to_content(row, vote([row], "f"))


def test_columns_that_only_some_rows_have_are_read_in_those():
    rows = [{"instruction": "q", "output": "a"}, {"instruction": "i", "input": "x", "output": "a"}]
    mapping = vote([rows[0], rows[0], rows[1]], "f")
    assert [to_content(row, mapping).messages[0]["content"] for row in rows] == ["q", "i\n\nx"]


def test_fields_and_roles_are_renamed_by_the_config():
    row = {"dialogue": [{"who": "customer", "said": "q"}, {"who": "agent", "said": "a"}], "setting": "s"}
    fields = {"turns": "dialogue", "role": "who", "content": "said", "system": "setting"}
    roles = {"customer": "user", "agent": "assistant"}
    mapping = vote([row], "f", forced="messages", fields=fields, roles=roles)
    assert to_content(row, mapping).messages == (SYSTEM, *PLAIN)
    row = {"a": "q", "b": "", "c": "a"}
    mapping = vote([row], "f", forced="alpaca", fields={"instruction": "a", "input": "b", "output": "c"})
    assert to_content(row, mapping).messages == PLAIN
    with pytest.raises(ConfigError, match="no part 'prompt'"):
        vote([row], "f", forced="alpaca", fields={"prompt": "a"})
    with pytest.raises(ValueError, match="name it"):
        DataSpec(train=("a",), fields={"turns": "x"})


BAD_ROWS = {
    "chosen and rejected are the same": {"prompt": "q", "chosen": "a", "rejected": "a"},
    "empty rejected side": {"prompt": "q", "chosen": "a", "rejected": " "},
    "no prompt": {"chosen": "a", "rejected": "b"},
    "does not begin with the prompt": {"prompt": "x", "chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
    "two user turns": {"prompt": [USER], "chosen": [USER, ANSWER], "rejected": [USER, USER, OTHER]},
    "the same rank": {"prompt": "q", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 1}]},
    "two or more answers": {"prompt": "q", "answers": [{"answer": "a", "rank": 1}]},
    "answer 2 has no rank": {"prompt": "q", "responses": ["a", "b"], "ranks": [1, None]},
    "not two lists of the same length": {"prompt": "q", "responses": ["a", "b"], "ranks": [1]},
    "neither true nor false": {"prompt": "q", "completion": "a", "kto_tag": "maybe"},
    "lists of the same length": {"prompt": "q", "completions": ["x"], "labels": []},
    "no segment of this row is trained": {"segments": [{"text": "a", "label": False}]},
    "segment 2": {"segments": [{"text": "a", "label": True}, {"text": "a", "label": "yes"}]},
    "no turn of this row is trained": asked(USER, {**ANSWER, "weight": 0}),
    "a turn is trained (1) or not (0)": asked(USER, {**ANSWER, "weight": 0.5}),
    "a part that is not trained": asked(USER, {"role": "assistant", "content": [{"text": "a", "train": False}]}),
    "'reasoning_content'": asked(USER, {**ANSWER, "reasoning_content": "hm"}),
    "a tool call without a name": asked(USER, {**CALLS, "tool_calls": [{"function": {}}]}),
    "are not a JSON object": asked(USER, {**CALLS, "tool_calls": [{"function": {"name": "f", "arguments": "{x"}}]}),
    "a user turn calls a tool": asked({**USER, "tool_calls": [CALL]}, ANSWER),
    "which nobody made": asked(USER, {**CALLS, "tool_calls": [WITH_ID]}, {**RESULT, "tool_call_id": "c2"}, ANSWER),
    "have the same id": asked(USER, {**CALLS, "tool_calls": [WITH_ID, WITH_ID]}, RESULT, ANSWER),
    "without a call id": asked(USER, {**CALLS, "tool_calls": [WITH_ID, {**CALL, "id": "c2"}]}, RESULT, ANSWER),
    "tools is not a list": asked(USER, ANSWER, tools="x"),
    "a tool without a name": asked(USER, ANSWER, tools=[{"type": "function", "function": {}}]),
    "a thinking block": {"tools": [{"name": "f", "input_schema": {}}], "messages": [USER, {"role": "assistant",
                         "content": [{"type": "thinking", "thinking": "hm"}]}]},
}  # fmt: skip


@pytest.mark.parametrize("words", BAD_ROWS)
def test_rows_that_cannot_be_kept_whole_say_why(words):
    row = BAD_ROWS[words]
    with pytest.raises(RowError, match=re.escape(words)):
        to_content(row, vote([row], "f"))


def test_the_preferred_side():
    assert preferred(PAIR) == Content(PLAIN)
    assert preferred(Content(PLAIN, label=True)) == Content(PLAIN)
    for content in (Content(PLAIN, label=False), Content(PLAIN, steps=(("a", True), ("b", False)))):
        with pytest.raises(RowError, match="preferred_only"):
            preferred(content)


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
        ([{"role": "assistant", "content": None, "tool_calls": [{}]}], "tool call"),
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
    assert json.loads(reader.content(row).messages[1]["content"]) == {"n": 2, "ok": True, "x": 1.5, "s": "NA"}
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
        assert mapping and to_content(row, mapping, needs_answer=False).messages == (USER,)


def test_look_for_init(tmp_path):
    (tmp_path / "a.csv").write_text("text,category\nq,a\n")
    seen = look(tmp_path / "a.csv")
    assert (
        seen.columns == ("text", "category") and str(seen.mapping) == "columns (prompt = text, completion = category)"
    )
    (tmp_path / "b.csv").write_text("subject,grade\nq,a\n")
    assert look(tmp_path / "b.csv").mapping is None and "subject" in look(tmp_path / "b.csv").problem
    assert DataSpec(train=("a.csv",)).format == "auto"

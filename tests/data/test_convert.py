"""Conversion both ways: every pair of formats that can hold a content gives it back, through every container; what a
target cannot hold is set aside by name."""

from __future__ import annotations

import json
import random
from itertools import product

import pytest

from luthier.data.convert import convert, writable_formats
from luthier.data.detect import detect
from luthier.data.formats.format import Content, features, write_row
from luthier.data.formats.registry import FORMATS, to_content, vote
from luthier.data.read import read_records
from luthier.data.turns import RowError, check_order
from luthier.errors import DataError

WRITABLE = writable_formats()
ENDINGS = [f"{e}{p}" for e, p in zip(
    ("jsonl", "json", "csv", "tsv", "parquet", "arrow", "jsonl", "jsonl", "csv", "parquet", "arrow", "json"),
    ("", "", "", "", "", "", ".gz", ".zst", ".xz", ".zst", ".gz", ".bz2"), strict=True)]  # fmt: skip
WORDS = [
    "kettle",
    "ü€🙂",
    'say "so"',
    "a, b; c\td",
    "line\nbreak",
    "  indented",
    "[1, 2]",
    "NA",
    "{}",
    "=1+1",
    "\u2028",
    "|",
]


def words(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(1, 4)))


def make(kind: str, rng: random.Random) -> Content:
    """A content of one kind: what its features are is up to chance."""
    if kind == "text":
        return Content(text=words(rng))
    if kind == "segments":
        segments = tuple((words(rng), i % 2 == 1) for i in range(rng.randint(2, 4)))
        return Content(text="".join(text for text, _ in segments), segments=segments)
    messages = [{"role": "system", "content": words(rng)}] if rng.random() < 0.5 else []
    if kind == "stepwise":
        steps = tuple((words(rng), rng.random() < 0.5) for _ in range(3))
        answer = "\n".join(text for text, _ in steps)
        user = {"role": "user", "content": words(rng)}
        return Content((user, {"role": "assistant", "content": answer}), steps=steps)
    for turn in range(rng.choice([1, 1, 2, 3])):
        user = {"role": "user", "content": words(rng)}
        if kind == "tools" and turn == 0:
            schema = {"type": "object", "properties": {"x": {"type": rng.choice(["string", "integer"])}}}
            user["tools"] = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
        messages.append(user)
        if kind == "tools":
            messages += called(rng)
        answer = {"role": "assistant", "content": words(rng)}
        messages.append(answer)
    if kind == "context" or (kind in ("preference", "kto") and rng.random() < 0.7):
        messages[:-1] = [{**m, "train": False} if m["role"] == "assistant" else m for m in messages[:-1]]
    if kind == "preference":
        start = next(i for i, m in enumerate(messages) if m["role"] == "assistant" and m.get("train") is not False)
        rejected = {"role": "assistant", "content": words(rng) + " not"}
        return Content(tuple(messages[: start + 1]), rejected=(rejected,))
    return Content(tuple(messages), label=rng.random() < 0.5 if kind == "kto" else None)


def called(rng: random.Random) -> list[dict]:
    has_id = rng.random() < 0.5
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": words(rng), "n": [1, None, {"y": True}]}}}
    result = {"role": "tool", "content": words(rng)}
    text = rng.choice(["", words(rng)])
    if has_id:
        call["id"], result["tool_call_id"] = "c1", "c1"
    return [{"role": "assistant", "content": text, "tool_calls": [call]}, result]


KINDS = ("chat", "context", "tools", "preference", "kto", "stepwise", "segments", "text")


def read(path) -> list[Content]:
    rows = [record.value for record in read_records(detect(path), path.name)]
    mapping = vote(rows, path.name)
    return [to_content(row, mapping) for row in rows]


def contents(kind: str, *formats: str, seed: int = 0, count: int = 12) -> list[Content]:
    """Contents of this kind that all of these formats can hold."""
    rng, found = random.Random(seed), []
    for _ in range(60 * count):
        content = make(kind, rng)
        has = features(content)
        if all(has <= FORMATS[name].holds and FORMATS[name].needs in {"", *has} for name in formats):
            found.append(content)
        if len(found) == count:
            break
    return found


PAIRS = [(a, b, k) for a, b in product(WRITABLE, WRITABLE) for k in KINDS
         if contents(k, a, b, count=1)]  # fmt: skip


@pytest.mark.parametrize(("first", "second", "kind"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
def test_there_and_back_through_every_pair_of_formats(tmp_path, first, second, kind):
    seed = PAIRS.index((first, second, kind))
    given = contents(kind, first, second, seed=seed)
    for content in given:
        if content.messages:
            check_order(content.messages)
    one = tmp_path / f"a.{ENDINGS[seed % len(ENDINGS)]}"
    start = tmp_path / "start.jsonl"
    start.write_text(
        "".join(json.dumps({**write_row(c, FORMATS[first]), "row": i}) + "\n" for i, c in enumerate(given))
    )
    two, back = tmp_path / f"b.{ENDINGS[(seed // 2 + 3) % len(ENDINGS)]}", tmp_path / "back.jsonl"
    for source, target, to in ((start, one, first), (one, two, second), (two, back, first)):
        done = convert(source, target, to=to)
        assert (done.rows_written, done.rows_read) == (len(given), len(given)), done.quarantine.entries
        assert read(target) == given
    assert [int(r.value["row"]) for r in read_records(detect(back), "back")] == list(range(len(given)))


def test_every_feature_is_held_by_some_format_and_refused_by_another(tmp_path):
    samples = {kind: contents(kind, seed=1, count=60) for kind in KINDS}
    seen = set()
    for kind, some in samples.items():
        for content, name in product(some, WRITABLE):
            lost = features(content) - FORMATS[name].holds
            seen |= features(content)
            if lost:
                needs = FORMATS[name].needs
                words = sorted(lost)[0] if needs in {"", *features(content)} else f"{name} needs: {needs}"
                with pytest.raises(RowError, match=words):
                    write_row(content, FORMATS[name])
        assert some, kind
    assert {"tool calls", "call ids", "rejected side", "label", "steps", "earlier answers untrained"} <= seen


def test_rows_that_the_target_cannot_hold_are_set_aside_by_name(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0},
                      {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"messages": [{"role": "user", "content": "q"}]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "output": "mine"},
    ]  # fmt: skip
    source, target = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    done = convert(source, target, to="alpaca")
    assert (done.rows_read, done.rows_written) == (5, 1) and len(target.read_text().splitlines()) == 1
    details = [json.loads(line)["detail"] for line in (tmp_path / "b.jsonl.quarantine.jsonl").read_text().splitlines()]
    assert "alpaca cannot hold: earlier answers untrained" in details and len(details) == 4
    assert any("no answer" in d for d in details) and any("'output' would be overwritten" in d for d in details)


def test_of_many_ranked_answers_the_rest_stays_beside_the_row(tmp_path):
    source, target = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    answers = [{"answer": f"a{i}", "rank": i} for i in (2, 3, 1)]
    rows = [{"prompt": "q", "answers": answers}, {"prompt": "p", "answers": answers[1:]}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = convert(source, target, to="preference")
    assert (done.rows_read, done.rows_written) == (2, 2)
    assert [json.loads(line) for line in target.read_text().splitlines()] == [
        {"prompt": "q", "chosen": "a1", "rejected": "a3", "answers": answers},
        {"prompt": "p", "chosen": "a1", "rejected": "a3"},
    ]


def test_what_csv_and_tables_cannot_hold(tmp_path):
    source = tmp_path / "a.jsonl"
    rows = [{"id": 1, "x": ["a"]}, {"id": 2.5, "x": "a\rb"}, {"id": None, "x": "=1+1"}, {"id": True, "x": "fine"}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = convert(source, tmp_path / "b.csv")
    reasons = [entry.detail for entry in done.quarantine.entries]
    assert ["list" in reasons[0], "carriage return" in reasons[1], len(reasons)] == [True, True, 2]
    assert {"nulls and absent columns became empty cells", "cells that a spreadsheet may run as a formula"} < set(
        done.changes
    )
    with pytest.raises(DataError, match="two types"):
        convert(source, tmp_path / "b.parquet")
    assert not (tmp_path / "b.parquet").exists()
    with pytest.raises(DataError, match="nothing but a text column"):
        convert(source, tmp_path / "b.txt")
    (tmp_path / "c.jsonl").write_text('{"1.5": "x"}\n')
    with pytest.raises(DataError, match="column called"):
        convert(tmp_path / "c.jsonl", tmp_path / "c.csv")


def test_lines_of_text_become_rows_and_lines_again(tmp_path):
    (tmp_path / "a.txt").write_text("one line\nanother line\n")
    convert(tmp_path / "a.txt", tmp_path / "b.parquet")
    convert(tmp_path / "b.parquet", tmp_path / "c.txt.gz")
    convert(tmp_path / "c.txt.gz", tmp_path / "d.txt")
    assert (tmp_path / "d.txt").read_bytes() == (tmp_path / "a.txt").read_bytes()


def test_refusals(tmp_path):
    source = tmp_path / "a.jsonl"
    source.write_text('{"prompt": "q", "completion": "a"}\n')
    for name, to, said in (("b.docx", "", "no container"), ("b.jsonl", "jeopardy", "no format that can be written")):
        with pytest.raises(DataError, match=said):
            convert(source, tmp_path / name, to=to)
    kept = tmp_path / "b.csv"
    kept.write_text("old")
    with pytest.raises(DataError, match="none of its 1 rows can be written: text cannot hold"):
        convert(source, kept, to="text")
    assert kept.read_text() == "old", "a failed conversion leaves the old file"

"""The bad rows and sets that `prepare` meets beside two hundred good rows, and what becomes of each.

`python -m tests.data.bad_input` writes the table into docs/bad_input.md; a test holds the page against it.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

PAGE = Path(__file__).resolve().parents[2] / "docs/bad_input.md"
MARKS = ("<!-- cases -->\n", "<!-- end of cases -->\n")


def chat(*turns: str, **last) -> dict:
    messages = [{"role": role, "content": text} for role, _, text in (turn.partition(":") for turn in turns)]
    return {"messages": [*messages[:-1], {**messages[-1], **last}]}


def called(arguments: str) -> dict[str, Any]:
    return {"id": "c1", "function": {"name": "f", "arguments": arguments}}


CALL = called("{}")
# name -> (the row, words of its reason; "" = kept)
CHAT = {
    "unknown role": (chat("user:q", "narrator:x", "assistant:a"), "unknown role"),
    "the assistant begins": (chat("assistant:a", "user:q"), "first turn"),
    "two user turns": (chat("user:q", "user:q", "assistant:a"), "two user turns"),
    "a system message in the middle": (chat("user:q", "system:s", "assistant:a"), "system message stands after"),
    "no assistant turn": (chat("user:q"), "no answer"),
    "an answer of white space": (chat("user:q", "assistant: \n\t"), "empty answer"),
    "content null beside a call": (
        {"messages": [{"role": "user", "content": "null beside a call"},
                      {"role": "assistant", "content": None, "tool_calls": [CALL]},
                      {"role": "tool", "content": "x", "tool_call_id": "c1"}, {"role": "assistant", "content": "a"}]},
        ""),
    "content null": (chat("user:q", "assistant:", content=None), "no text content"),
    "an image part": (chat("user:q", "assistant:", content=[{"type": "image_url"}]), "not text"),
    "text parts": (chat("user:the parts", "assistant:", content=[{"type": "text", "text": "a"}]), ""),
    "a tool result that answers no call": (
        {"messages": [*chat("user:q", "assistant:", tool_calls=[CALL])["messages"],
                      {"role": "tool", "content": "x", "tool_call_id": "c9"}, {"role": "assistant", "content": "a"}]},
        "nobody made"),
    "two calls with one id": (
        {"messages": [*chat("user:q", "assistant:", tool_calls=[CALL, CALL])["messages"],
                      {"role": "tool", "content": "x", "tool_call_id": "c1"}, {"role": "assistant", "content": "a"}]},
        "the same id"),
    "a tool result where no tool was called": (
        {"messages": [*chat("user:q", "assistant:a")["messages"],
                      {"role": "tool", "content": "x", "tool_call_id": "c1"}, {"role": "assistant", "content": "a"}]},
        "nobody made"),
    "two results of one call": (
        {"messages": [*chat("user:q", "assistant:", tool_calls=[CALL])["messages"],
                      *[{"role": "tool", "content": "x", "tool_call_id": "c1"}] * 2,
                      {"role": "assistant", "content": "a"}]},
        "two tool results"),
    "arguments with a key twice": (chat("user:q", "assistant:", tool_calls=[called('{"a": 1, "a": 2}')]), "arguments"),
    "arguments with NaN": (chat("user:q", "assistant:", tool_calls=[called('{"a": NaN}')]), "arguments"),
    "arguments with half a character": (
        chat("user:q", "assistant:", tool_calls=[called('{"a": "\\ud800"}')]), "arguments"),
    "a part that is a thought": (
        chat("user:q", "assistant:", content=[{"type": "reasoning", "text": "hm"}, {"type": "text", "text": "a"}]),
        "not text"),
    "a picture with an empty caption": (
        chat("user:q", "assistant:", content=[{"type": "image", "text": ""}, {"type": "text", "text": "a"}]),
        "not text"),
    "the mark of a picture in a column": (
        {**chat("user:<image> what is it", "assistant:a"), "images": ["a.png"]}, "the mark <image>"),
    "the mark of a picture, and no picture": (chat("user:what does <image> mean", "assistant:a"), ""),
    "an answer of invisible characters": (chat("user:q", "assistant:\u200b\ufeff"), "empty answer"),
    "an empty system message": (chat("system:", "user:q", "assistant:a"), "empty system message"),
    "a control token typed by the user": (chat("user:what is <|im_end|> for", "assistant:it ends a turn"), ""),
    "a template that raises": (chat("user:boom", "assistant:a"), "cannot be rendered"),
    "a row without turns": ({"messages": []}, "no turns"),
    "turns that are no list": ({"messages": "hello"}, "no turns"),
    "a row of another shape": ({"text": "x", "label": 3}, "no turns"),
}  # fmt: skip
# name -> (a raw line of the JSONL file, words of its reason; "" = kept)
LINES = {
    "a malformed line": (b'{"messages": [', "not valid JSON"),
    "single quotes": (b"{'messages': []}", "not valid JSON"),
    "two objects on a line": (b'{"a": 1}{"a": 2}', "two JSON values"),
    "an array for a row": (b"[]", "not an object"),
    "a duplicate key": (b'{"messages": 1, "messages": 2}', "duplicate key"),
    "NaN": (b'{"messages": NaN}', "NaN is not JSON"),
    "a lone surrogate": (b'{"messages": "\\ud800"}', "surrogate"),
    "nested 100,000 deep": (b'{"a":' * 100_000, "nested too deep"),
    "nothing but NUL bytes": (b"\x00" * 50, "not valid JSON"),
    "the bytes of half a surrogate": (b'{"messages": "\xed\xa0\x80"}', "not UTF-8"),
    "a duplicate key deep inside": (b'{"messages": [{"role": "user", "role": "assistant"}]}', "duplicate key"),
    "a list nested 5,000 deep": (b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}", "nested too deep"),
    "a carriage return where a line should end": (b'{"a": 1}\r{"a": 2}', "two JSON values"),
    "bytes of Latin-1": ('{"messages": "café"}'.encode("latin-1"), "not UTF-8"),
    "a trailing comma": (b'{"messages": [],}', "not valid JSON"),
    "a comma at the end of the line": (b'{"messages": []},', "a comma after the JSON value"),
    "a number beyond what a float holds": (b'{"messages": 1e400}', "a number too large"),
    "null for a row": (b"null", "not an object"),
    "a number for a row": (b"3", "not an object"),
    "Infinity": (b'{"messages": -Infinity}', "Infinity is not JSON"),
    "a number of 5,000 digits": (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
    "a whole number beyond 64 bits, beside the turns": (
        json.dumps({**chat("user:beyond 64 bits", "assistant:a"), "n": 2**70}).encode(), ""),
    "leading nulls in a list": (b'{"messages": [null, null]}', "not an object with"),
    "U+2028 and U+0085 inside a text": (
        json.dumps(chat("user:one\u2028two\x85three", "assistant:a"), ensure_ascii=False).encode(), ""),
    "NUL and control characters": (json.dumps(chat("user:a\x00b\x07c", "assistant:a")).encode(), ""),
    "CRLF at the end of a line": (json.dumps(chat("user:windows line", "assistant:a")).encode() + b"\r", ""),
}  # fmt: skip
# name -> (rows of preference data, words of their reason)
PAIRS = {
    "chosen equals rejected": ({"prompt": "q", "chosen": "a", "rejected": "a"}, "are the same"),
    "sides equal but for white space": ({"prompt": "q", "chosen": "a", "rejected": " a\n"}, "are the same"),
    "one side empty": ({"prompt": "q", "chosen": "a", "rejected": ""}, "empty rejected side"),
    "no prompt": ({"chosen": "a", "rejected": "b"}, "no prompt"),
}
CSV = {
    "an empty answer": (b"a question of many words,\n", "empty"),
    "a ragged row": (b"one cell\n", "1 cells"),
    "the text NA": (b"not available,NA\n", ""),
    "a field of a million characters": (b'"' + b"x" * 1_000_000 + b'",a\n', "not valid CSV"),
    "an embedded line end and quotes": (b'"two\nlines ""here""",a\n', ""),
    "a field of many lines and 140,000 characters": (
        b'"' + b"one, two\n" * 16_000 + b'last words",a\n',
        "not valid CSV",
    ),
    "a formula": (b"=1+1 is a formula,a\n", ""),
    "bytes of Latin-1": ("café,a\n".encode("latin-1"), "not UTF-8"),
    "a quote that is never closed": (b'"open,a\n', "a quote that is never closed"),
    "the row after it": (b"what stands below an open quote,a\n", ""),
}

GOOD = b'{"prompt": "how do I reset it", "completion": "hold the button"}\n'
GZ = gzip.compress(GOOD * 50)


def zstd(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


# what it is -> (its name, its bytes, words of the message or the hint)
FILES = {
    "empty": ("a.jsonl", b"", "empty"),
    "white space only": ("a.jsonl", b" \n\n \t\n", "white space"),
    "utf-16": ("a.csv", "text,label\na,b\n".encode("utf-16"), "iconv"),
    "utf-16 without mark": ("a.csv", ("text,label\n" + "ab,cd\n" * 20).encode("utf-16-le"), "UTF-16"),
    "utf-16, high byte first": ("a.csv", ("text,label\n" + "ab,cd\n" * 20).encode("utf-16-be"), "iconv -f UTF-16BE"),
    "utf-32": ("a.csv", "text,label\na,b\n".encode("utf-32"), "UTF-32"),
    "html page": ("a.jsonl", b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
    "html in capitals": ("a.csv", b"\n <HTML><head>", "HTML"),
    "zip": ("a.csv", b"PK\x03\x04" + b"x" * 50, "zip"),
    "pdf": ("a.txt", b"%PDF-1.7 ...", "PDF"),
    "pickle": ("a.jsonl", b"\x80\x04\x95abc", "pickle"),
    "binary": ("a.txt", bytes(range(256)) * 20, "binary"),
    "old mac": ("a.csv", b"text,label\r" + b"abc,def\r" * 50, "Macintosh"),
    "gz cut off": ("a.jsonl.gz", GZ[:-20], "cut off"),
    "gz with trailing garbage": ("a.jsonl.gz", GZ + b"garbage", "broken"),
    "gz damaged": ("a.jsonl.gz", GZ[:20] + b"\xff\xff" + GZ[22:], "broken"),
    "zst cut off": ("a.jsonl.zst", zstd(os.urandom(5000).hex().encode())[:-900], "cut off"),
    "xz cut off": ("a.jsonl.xz", lzma.compress(os.urandom(5000).hex().encode())[:-900], "cut off"),
    "gz bomb": ("a.jsonl.gz", gzip.compress(b"a" * (40 << 20)), "bomb"),
    "parquet cut off": ("a.parquet", b"PAR1" + b"x" * 100, "broken parquet"),
    "parquet whose footer claims 1 GB": (
        "a.parquet",
        b"PAR1" + b"x" * 100 + (1 << 30).to_bytes(4, "little") + b"PAR1",
        "broken parquet",
    ),
    "arrow whose header claims 1 GB": (
        "a.arrow",
        b"\xff\xff\xff\xff" + (1 << 30).to_bytes(4, "little") + b"x" * 100,
        "broken arrow",
    ),
    "gz inside gz": ("a.jsonl.gz", gzip.compress(GZ), "packed twice"),
    "gz inside zst": ("a.jsonl.zst", zstd(GZ), "packed twice"),
    "lz4": ("a.jsonl.lz4", b"\x04\x22\x4d\x18" + b"x" * 50, "LZ4"),
    "7z": ("a.jsonl", b"7z\xbc\xaf\x27\x1c" + b"x" * 50, "7z"),
    "rar": ("a.csv", b"Rar!\x1a\x07\x01\x00", "RAR"),
    "old Excel file": ("a.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), "Excel"),
    "pickle of an old protocol": ("a.jsonl", b"\x80\x02}q\x00.", "pickle"),
    "NumPy array": ("a.jsonl", b"\x93NUMPY\x01\x00", "NumPy"),
    "Git LFS pointer": ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "encrypted parquet": ("a.parquet", b"PARE" + b"x" * 100 + b"PARE", "no parquet file"),
    "text named .arrow": ("a.arrow", b"not here any more", "no arrow file"),
    "zip named .gz": ("a.jsonl.gz", b"PK\x03\x04" + b"x" * 50, "zip"),
    "text sequence with record marks": ("a.json", b'\x1e{"a": 1}\n', "not JSON"),
    "json array cut off": ("a.json", b'[{"a": 1}, {"a": 2}', "breaks off"),
    "json array with trailing comma": ("a.json", b'[{"a": 1},]', "breaks off"),
    "json array, bad element": ("a.json", b'[{"a": 1},\n{"a": oops}]', "a.json:2"),
    "json array, deep element": ("a.json", b"[" * 100_000, "nested too deep"),
    "json array, then more": ("a.json", b'[{"a": 1}]\n[{"a": 2}]', "more text"),
    "json object of two lists": ("a.json", b'{\n"train": [{"a": 1}], "test": []}', "'train', 'test'"),
    "json object that is a row": ("a.json", b'{\n"messages": [{"a": 1}]}', "put [ and ] around"),
    "json object without a list": ("a.json", b'{\n"a": 1}', "without a list"),
    "json objects, not one a line": ("a.json", b'{\n"data": [{"a": 1}]} {"a": 1}', ".jsonl"),
    "json object cut off": ("a.json", b'{"data": [\n{"a": 1},', "'data'"),
    "json is csv": ("a.json", b"text,label\na,b\n", ".csv"),
    "csv with duplicate headers": ("a.csv", b"text,label,text\na,b,c\n", "'text'"),
    "csv with unnamed column": ("a.csv", b"text,,label\na,b,c\n", "column 2"),
    "csv without header": ("a.csv", b"17,some text\n18,other text\n", "header"),
}  # fmt: skip


@dataclass(frozen=True)
class Set:
    """Files (the first is trained on, test.* is data.test), settings, what becomes of the rows: reason -> rows set
    aside, or refused: words of the message; warning: words of a warning beside."""

    files: dict[str, bytes]
    settings: dict[str, Any] = field(default_factory=dict)
    aside: dict[str, int] = field(default_factory=dict)
    refused: str = ""
    warning: str = ""
    sequence_len: int = 512


def pairs(num: int, **more: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"good question {i} about w{i * 7}", "completion": f"a{i}", **more} for i in range(num)]


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def parquet(**columns: list[Any]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def arrow(**columns: Any) -> bytes:
    out, made = io.BytesIO(), pa.table(columns)
    with pa.ipc.new_stream(out, made.schema) as writer:
        writer.write_table(made)
    return out.getvalue()


def _accents(form: str) -> dict[str, str]:
    return {"prompt": unicodedata.normalize(form, "où est l’élève"), "completion": unicodedata.normalize(form, "là")}


_TIMES = (1_705_400_000_000, 1_705_400_000, 20240131, "2024-01-31T10:00:00.123456789Z")
_NO_UTF8 = b"\x89PNG\xff"
_PROMPTS, _ANSWERS = [row["prompt"] for row in pairs(20)], [row["completion"] for row in pairs(20)]
SETS = {
    "the same text composed (NFC) and decomposed (NFD)": Set(
        {"a.jsonl": lines([*pairs(20), _accents("NFC"), _accents("NFD")])}, aside={"exact duplicate": 1}),
    "the same row twice, and once with a word more": Set(
        {"a.jsonl": lines([*pairs(20), pairs(1)[0], {"prompt": " ".join(f"word{i}" for i in range(40)),
                                                     "completion": "a"},
                           {"prompt": " ".join(f"word{i}" for i in range(41)), "completion": "a"}])},
        {"near_duplicate_threshold": 0.8}, aside={"exact duplicate": 1, "near duplicate": 1}),
    "training rows that stand in the test file": Set(
        {"a.jsonl": lines(pairs(30)), "test.jsonl": lines(pairs(5))}, aside={"leaks into the test set": 5}),
    "one id on rows of different content": Set({"a.jsonl": lines(pairs(20, id="same"))}),
    "one answer to everything": Set(
        {"a.jsonl": lines([{**row, "completion": "yes"} for row in pairs(20)])}, warning="the same answer"),
    "one row": Set({"a.jsonl": lines(pairs(1))}, warning="no dev split"),
    "answers that are numbers from some row on": Set(
        {"a.jsonl": lines([*pairs(10), *({**row, "completion": i} for i, row in enumerate(pairs(20)[10:]))])},
        warning="'completion' changes its type: text in 10 rows (first at a.jsonl:1), numbers in 10 rows "
                "(first at a.jsonl:11)"),
    "a column of six types": Set(
        {"a.jsonl": lines([*pairs(20), *({"prompt": f"what of {value}", "completion": value}
                                         for value in (3, True, 1.5, None, {"a": 1}, ["a"]))])},
        aside={"column … is missing or null": 1, "turn … is not an object with … and …": 2},
        warning="'completion' changes its type"),
    "a column that nothing reads, of two types": Set(
        {"a.jsonl": lines([{**row, "meta": [1] if i % 2 else "x"} for i, row in enumerate(pairs(20))])}),
    "turns in one half, pairs in the other": Set(
        {"a.jsonl": lines([*(chat(f"user:ask {i} w{i}", f"assistant:a{i}") for i in range(12)), *pairs(10)])},
        aside={"no turns": 10}),
    "every row longer than sequence_len, refused": Set(
        {"a.jsonl": lines(pairs(20))}, refused="20 of 20 rows are longer than train.sequence_len = 4", sequence_len=4),
    "every row longer than sequence_len, to be set aside": Set(
        {"a.jsonl": lines(pairs(20))}, {"over_length": "quarantine"}, sequence_len=4,
        refused="every one of the 20 rows is longer than train.sequence_len = 4"),
    "some rows longer than sequence_len, to be set aside": Set(
        {"a.jsonl": lines([*pairs(20), {"prompt": "word " * 60, "completion": "a"}])}, {"over_length": "quarantine"},
        aside={"over length": 1}, sequence_len=40),
    "a Parquet file with pictures beside the text": Set(
        {"a.parquet": parquet(prompt=_PROMPTS, completion=_ANSWERS,
                              image=[{"bytes": _NO_UTF8, "path": "x.png"}] * 20)},
        warning="a.parquet: column 'image' holds bytes that are no text in 20 rows: left out"),
    "a Parquet file whose answers are partly bytes that are no text": Set(
        {"a.parquet": parquet(prompt=_PROMPTS, completion=[_NO_UTF8] * 3 + [b"ok"] * 17)},
        aside={"column … is missing or null (bytes that are no text": 3}, warning="in 3 rows: left out"),
    "a Parquet file whose text is not UTF-8 in one row": Set(
        {"a.parquet": parquet(prompt=_PROMPTS, completion=pa.array([b"caf\xe9"] + [b"ok"] * 19).view(pa.string()))},
        aside={"column … is not UTF-8": 1}),
    "a last line that breaks off, without a line end": Set(
        {"a.jsonl": lines(pairs(20))[:-9]}, aside={"not valid JSON": 1}),
    "empty lines and lines of spaces": Set({"a.jsonl": lines(pairs(20)).replace(b"\n", b"\n\n \n")}),
    "labels written as words, True and False": Set(
        {"a.jsonl": lines([{**row, "label": str(bool(i % 2))} for i, row in enumerate(pairs(20))]
                          + [{"prompt": "perhaps", "completion": "a", "label": "maybe"}])},
        {"preferred_only": True},
        aside={"labelled undesirable, and data.preferred_only is set": 10,
               "column … is neither true nor false": 1}),
    "direction marks and zero-width characters": Set(
        {"a.jsonl": lines([*pairs(20), {"prompt": "right \u202eto left \u200bx", "completion": "a"}])}),
    "a song that begins with [Verse 1]": Set({"a.txt": b"[Verse 1]\n" + b"\n".join(
        f"line {i}".encode() for i in range(20))}),
    "a header that begins with [id]": Set(
        {"a.csv": b"[id],[text],[label]\n" + b"".join(f"{i},a text {i},{i % 2}\n".encode() for i in range(20))},
        {"prompt": "{[text]}", "completion": "{[label]}"}),
    "a table with a time beyond the year 9999": Set(
        {"a.arrow": arrow(prompt=_PROMPTS, completion=_ANSWERS, at=pa.array([0] * 19 + [10**14], pa.timestamp("s")))},
        aside={"column … cannot be read": 1}),
    "a table with infinities": Set(
        {"a.arrow": arrow(prompt=_PROMPTS, completion=_ANSWERS, score=[float("inf")] * 20)}),
    "one answer judged good and bad": Set(
        {"a.jsonl": lines([*pairs(20, label=True), *pairs(1, label=False)])}, {"preferred_only": True},
        aside={"labelled undesirable, and data.preferred_only is set": 1}),
    "one question with two tool calls": Set(
        {"a.jsonl": lines(
            [chat("user:q", "assistant:", tool_calls=[called(json.dumps({"n": n}))]) for n in (1, 2, 2)])},
        aside={"exact duplicate": 1}, warning="same prompt, different answer or judgement: 1 times"),
    "times in milliseconds, seconds and as 20240131": Set(
        {"a.jsonl": lines([{**row, "at": _TIMES[i % 4]} for i, row in enumerate(pairs(20))])},
        {"split": {"train": 0.8, "dev": 0.1, "test": 0.1, "by": "time", "column": "at"}}),
    "a column of times that is not there": Set(
        {"a.jsonl": lines(pairs(20))},
        {"split": {"train": 0.8, "dev": 0.1, "test": 0.1, "by": "time", "column": "at"}},
        refused="column 'at' of data.split.column tells nothing in any of 20 rows"),
    "a CSV file without a header": Set(
        {"a.csv": b"hello there,yes\nanother thing,no\n"}, refused="no known format fits its columns"),
}  # fmt: skip


def table() -> str:
    """The cases as a Markdown table."""
    out = ["| where | what | becomes |\n|---|---|---|\n"]
    for where, cases in (
        ("a chat row", CHAT),
        ("a JSONL line", LINES),
        ("a preference row", PAIRS),
        ("a CSV row", CSV),
    ):
        for name, (_, words) in cases.items():
            out.append(f"| {where} | {name} | {f'quarantined: {words}' if words else 'kept'} |\n")
    out += [f"| a set | {name} | {_becomes(one)} |\n" for name, one in SETS.items()]
    out += [f"| a whole file | {name} | refused |\n" for name in FILES]
    return "".join(out)


def _becomes(one: Set) -> str:
    if one.refused:
        return f"refused: {one.refused}"
    aside = "; ".join(f"{count} quarantined: {words}" for words, count in one.aside.items())
    return (aside or "kept") + (f"; warning: {one.warning}" if one.warning else "")


if __name__ == "__main__":
    head, _, rest = PAGE.read_text().partition(MARKS[0])
    PAGE.write_text(head + MARKS[0] + table() + MARKS[1] + rest.partition(MARKS[1])[2])

"""The bad-input catalogue: every fixture is an error that says what to do, or quarantined rows with the rest kept."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from luthier.data.detect import detect
from luthier.data.quarantine import Quarantine, retrieve
from luthier.data.read import read_records
from luthier.data.sources import files_in, find_sources
from luthier.errors import DataError
from luthier.store.publish import publishing
from tests.data.bad_input import FILES, GOOD, GZ, zstd

PAIR = {"prompt": "p", "completion": "c"}


def read(path: Path):
    return list(read_records(detect(path), path.name))


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("case", FILES)
def test_whole_file_errors_say_what_to_do(tmp_path, case):
    name, data, words = FILES[case]
    with pytest.raises(DataError) as caught:
        read(write(tmp_path, name, data))
    assert name in str(caught.value) and caught.value.hint
    assert words in str(caught.value) + caught.value.hint


def test_paths_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    kinds = [(tmp_path, "directory"), (tmp_path / "pipe", "pipe"), (tmp_path / "no.csv", "no such file")]
    kinds += [(Path("/dev/null"), "device"), (tmp_path / "socket", "socket")]
    socket.socket(socket.AF_UNIX).bind(str(tmp_path / "socket"))
    for path, words in kinds:
        with pytest.raises(DataError, match=words) as caught:
            detect(path)
        assert caught.value.hint
    if os.geteuid() != 0:
        locked = write(tmp_path, "locked.csv", b"a,b\n")
        locked.chmod(0)
        with pytest.raises(DataError, match="cannot be read"):
            detect(locked)


# name, bytes of one bad line, words of the reason
LINES = {
    "malformed": (b'{"prompt": "p"', "not valid JSON"),
    "trailing comma": (b'{"prompt": "p",}', "not valid JSON"),
    "single quotes": (b"{'prompt': 'p'}", "not valid JSON"),
    "two objects": (b'{"a": 1}{"a": 2}', "two JSON values"),
    "text after": (b'{"a": 1} x', "text after"),
    "array row": (b"[]", "an array"),
    "null row": (b"null", "null"),
    "number row": (b"3", "a number"),
    "duplicate key": (b'{"prompt": "a", "prompt": "b"}', "duplicate key 'prompt'"),
    "NaN": (b'{"prompt": NaN}', "NaN"),
    "Infinity": (b'{"prompt": -Infinity}', "Infinity"),
    "lone surrogate": (b'{"prompt": "\\ud800"}', "surrogate"),
    "deep": (b'{"a":' * 100_000, "deep"),
    "huge integer": (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
    "latin-1": ('{"prompt": "café"}'.encode("latin-1"), "offset {at}"),
    "utf-8 mark later": (b'\xef\xbb\xbf{"a": 1}', "not valid JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", LINES)
@pytest.mark.parametrize("packed", ["", ".gz", ".zst", ".bz2", ".xz"])
def test_bad_lines_are_quarantined_with_place_and_bytes(tmp_path, case, packed):
    bad, words = LINES[case]
    data = GOOD + b"\n" + bad + b"\n" + GOOD[:-1]  # a blank line before, no newline at the end
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstd, ".bz2": bz2.compress, ".xz": lzma.compress}[packed]
    path = write(tmp_path, "a.jsonl" + packed, pack(data))
    records = read(path)
    assert [r.line for r in records] == [1, 3, 4] and [bool(r.problem) for r in records] == [False, True, False]
    assert words.replace("{at}", str(len(GOOD) + 1 + bad.find(0xE9))) in records[1].problem
    quarantine = Quarantine()
    quarantine.add(records[1], records[1].problem)
    assert retrieve(quarantine.entries[0], tmp_path) == bad + b"\n"


def test_line_beyond_the_cap_is_skipped_and_counted(tmp_path):
    big = b'{"prompt": "' + b"x" * (17 << 20) + b'"}\n'
    records = read(write(tmp_path, "a.jsonl", GOOD + big + GOOD))
    assert [r.line for r in records] == [1, 2, 3] and "too long" in records[1].problem
    assert records[2].byte_start == len(GOOD) + len(big) and records[2].value


def test_characters_that_split_lines_elsewhere_do_not_here(tmp_path):
    text = "a\u2028b\u2029c\x85d\x0be\x0cf"
    line = json.dumps({"prompt": text, "completion": "x"}, ensure_ascii=False).replace("\\u000b", "\x0b")
    records = read(write(tmp_path, "a.jsonl", (line.replace("\x0b", "") + "\r\n").encode() * 3))
    assert len(records) == 3 and all("\u2028b\u2029c\x85d" in r.value["prompt"] for r in records)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json", "a.txt"])
def test_utf8_mark_is_dropped(tmp_path, name):
    bodies = {"a.jsonl": GOOD, "a.csv": b"prompt,completion\r\np,c\r\n", "a.json": b" [" + GOOD + b"]", "a.txt": b"p"}
    row = read(write(tmp_path, name, b"\xef\xbb\xbf" + bodies[name]))[0]
    assert row.value and next(iter(row.value)) in ("prompt", "text")
    assert row.line == 1 + (name == "a.csv")


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_an_envelope_around_the_rows_is_opened(tmp_path, indent, mark):
    """{"data": [...]}, as exports write it; every row keeps its own line and bytes."""
    whole = {"version": "1.0", "data": [PAIR, {**PAIR, "prompt": "ü"}, 3], "meta": {"rows": 2}}
    path = write(tmp_path, "a.json", mark + json.dumps(whole, indent=indent, ensure_ascii=False).encode())
    records = read(path)
    assert [r.value for r in records[:2]] == whole["data"][:2] and "not an object" in records[2].problem
    for record, row in zip(records, whole["data"], strict=True):
        piece = path.read_bytes()[record.byte_start : record.byte_start + record.byte_len]
        assert json.loads(piece) == row
        assert record.line == 1 + path.read_bytes()[: record.byte_start].count(b"\n")


def test_rows_that_have_a_list_of_their_own_stay_rows(tmp_path):
    row = {"data": [{"n": 1}], **PAIR}
    lines = "".join(json.dumps(row) + "\n" for _ in range(2)).encode()
    assert [r.value for r in read(write(tmp_path, "a.json", lines))] == [row, row]
    assert [r.value for r in read(write(tmp_path, "b.jsonl", lines[: len(lines) // 2]))] == [row]


CSV = {
    "ragged": (b"a,b,c\n", "3 cells"),
    "short": (b"a\n", "1 cells"),
    "bad quotes": (b'"a"b,c\n', "not valid CSV"),
    "latin-1": ("caf\xe9,b\n".encode("latin-1"), "0xe9"),
    "long field": (b'"' + b"x" * 1_000_000 + b'",b\n', "field larger"),
}  # fmt: skip


@pytest.mark.parametrize("case", CSV)
def test_bad_csv_rows_are_quarantined(tmp_path, case):
    bad, words = CSV[case]
    head = b'text,label\nNA,null\n"two\nlines, ""quoted""",None\n\n'
    path = write(tmp_path, "a.csv", head + bad + b"=1+1,007\n")
    records = read(path)
    assert [r.value for r in records if r.value] == [
        {"text": "NA", "label": "null"},
        {"text": 'two\nlines, "quoted"', "label": "None"},
        {"text": "=1+1", "label": "007"},
    ]
    assert [r.line for r in records] == [2, 3, 6, 7] and words in records[2].problem
    quarantine = Quarantine()
    for record in records:
        quarantine.add(record, "x")
    assert b"".join(retrieve(e, tmp_path) for e in quarantine.entries) == (head + bad + b"=1+1,007\n")[11:].replace(
        b"\n\n", b"\n"
    )


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_csv_delimiter_is_sniffed(tmp_path, delimiter):
    lines = [delimiter.join(("text", "label")), delimiter.join(('"well, then; a|b"', "x")), delimiter.join(("b", "y"))]
    rows = [r.value for r in read(write(tmp_path, "a.csv", "\n".join(lines).encode()))]
    assert rows == [{"text": "well, then; a|b", "label": "x"}, {"text": "b", "label": "y"}]


@pytest.mark.parametrize(
    "data, rows, places",
    [
        (b'\xef\xbb\xbfsep=;\r\ntext;label\r\n"a\r\nb";x\r\n', [{"text": "a\nb", "label": "x"}], [3]),
        (b",text\n0,a\n1,b\n", [{"Unnamed: 0": str(n), "text": "ab"[n]} for n in (0, 1)], [2, 3]),
        (
            b'text,label\n"open,x\na,y\nb,z\n',
            [None, {"text": "a", "label": "y"}, {"text": "b", "label": "z"}],
            [2, 3, 4],
        ),
        (b'text,label\n"' + b"a, b\n" * 30_000 + b'c",x\na,y\n', [None, {"text": "a", "label": "y"}], [2, 30_003]),
    ],
    ids=["Excel's first line", "the index of a data frame", "an open quote", "a cell too long"],
)
def test_csv_as_other_programs_write_it(tmp_path, data, rows, places):
    """An open quote costs its own line; the lines of a cell that is too long are no rows."""
    records = read(write(tmp_path, "a.csv", data))
    assert [r.value for r in records] == rows and [r.line for r in records] == places
    assert sum(r.byte_len or 0 for r in records) == len(data) - (records[0].byte_start or 0)


def test_zstd_that_begins_with_a_frame_to_skip(tmp_path):
    skipped = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"size"
    assert len(read(write(tmp_path, "a.jsonl.zst", skipped + zstd(GOOD) + zstd(GOOD)))) == 2


def test_folders_of_the_datasets_library(tmp_path):
    """What it computed beside the rows is left out; a set of named splits is not read as one."""
    for name in ("train/data-0.jsonl", "test/data-0.jsonl", "train/cache-0123456789abcdef.arrow"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path, name, GOOD)
    assert [path.name for path in files_in(tmp_path / "train")] == ["data-0.jsonl"]
    write(tmp_path, "dataset_dict.json", b'{"splits": ["train", "test"]}')
    with pytest.raises(DataError, match="several splits") as caught:
        files_in(tmp_path)
    assert str(tmp_path / "train") in caught.value.hint


def test_what_a_stage_wrote_is_no_data_unless_it_is_named(tmp_path):
    """runs/ lies beside the data: no folder and no pattern brings test rows of an earlier preparation back."""
    with publishing(tmp_path / "runs/prepare-1", kind="prepare") as folder:
        write(folder, "test.jsonl", GOOD)
    write(tmp_path, "a.jsonl", GOOD)
    write(tmp_path, "manifest.json", b"{}")  # somebody else's
    for pattern in (".", "**/*.jsonl"):
        names = {one.name for one in find_sources((pattern,), "train", tmp_path)}
        assert names - {"manifest.json"} == {"a.jsonl"}
    named = "runs/prepare-1/test.jsonl"
    assert [one.name for one in find_sources((named,), "test", tmp_path)] == [named]


def test_content_wins_over_the_name(tmp_path):
    table = pa.table({"prompt": ["p"], "completion": ["c"]})
    pq.write_table(table, tmp_path / "a.csv")
    for name, data, container in (
        ("b.csv", GOOD, "jsonl"),
        ("c.parquet", GOOD, "jsonl"),
        ("d.jsonl", b"[" + GOOD + b"]", "json"),
        ("e.jsonl", GZ, "jsonl"),
        ("f.jsonl.gz", GOOD, "jsonl"),
        ("g", b"text,label\na,b\n", "csv"),
    ):
        found = detect(write(tmp_path, name, data))
        assert found.container == container and bool(found.warnings) == (name not in ("d.jsonl", "g"))
        assert read(tmp_path / name)[0].value
    assert detect(tmp_path / "a.csv").container == "parquet" and read(tmp_path / "a.csv")[0].value == PAIR


def test_tables_and_their_broken_rows(tmp_path):
    table = pa.table({"prompt": ["p", "q", None], "blob": [b"\xff", b"ok", None], "x": [1.5, float("nan"), None]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    with pa.OSFile(str(tmp_path / "b.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    write(tmp_path, "c.parquet.zst", zstd((tmp_path / "a.parquet").read_bytes()))
    write(tmp_path, "d.arrow.gz", gzip.compress((tmp_path / "b.arrow").read_bytes()))
    for name in ("a.parquet", "a.arrow", "b.arrow", "c.parquet.zst", "d.arrow.gz"):
        records = read(tmp_path / name)
        assert [r.no_text for r in records] == [("blob",), (), ()] and not any(r.problem for r in records)
        assert records[0].value == {"prompt": "p", "blob": None, "x": 1.5}
        assert records[1].value == {"prompt": "q", "blob": "ok", "x": None} and records[1].line == 2
        quarantine = Quarantine()
        quarantine.add(records[1], "x")
        assert json.loads(retrieve(quarantine.entries[0], tmp_path)) == records[1].value


def test_damaged_pages_are_named_and_text_that_is_not_utf8_costs_its_row_alone(tmp_path):
    table = pa.table({"prompt": [f"a question {i}" for i in range(60)], "completion": ["a"] * 60})
    pq.write_table(table, tmp_path / "a.parquet")
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[40:120] = b"\xff" * 80
    with pytest.raises(DataError, match="broken parquet"):
        read(write(tmp_path, "a.parquet", bytes(data)))
    raw = pa.array([b"good", b"caf\xe9", b"fine"]).view(pa.string())
    pq.write_table(pa.table({"prompt": raw, "completion": ["a", "b", "c"]}), tmp_path / "b.parquet")
    records = read(tmp_path / "b.parquet")
    assert [bool(one.problem) for one in records] == [False, True, False] and "utf-8" in records[1].problem
    assert records[2].value == {"prompt": "fine", "completion": "c"}


def test_change_during_reading_is_noticed(tmp_path):
    path = write(tmp_path, "a.jsonl", GOOD * 3)
    records = read_records(detect(path), "a.jsonl")
    next(records)
    with path.open("ab") as file:
        file.write(GOOD)
    with pytest.raises(DataError, match="changed while"):
        list(records)


def test_multi_member_gzip_and_odd_names(tmp_path):
    path = write(tmp_path, "-odd 'name'\u00e9\n.jsonl.gz", gzip.compress(GOOD) + gzip.compress(GOOD))
    assert len(read(path)) == 2

"""The catalogue, each case in one file beside good rows: rows read == kept + quarantined, each for its own reason."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from luthier.config.data import DataSpec
from luthier.config.load import load_project
from luthier.data.convert import convert
from luthier.data.prepare import prepare
from luthier.data.quarantine import read_quarantine, retrieve
from luthier.errors import DataError
from luthier.store.publish import verify_folder
from tests.data.bad_input import CHAT, CSV, LINES, MARKS, PAGE, PAIRS, SETS, chat, table
from tests.data.stub import WordCodec

GOOD = [
    json.dumps(chat(f"user:good question number {i} about w{i * 7}", f"assistant:a{i}")).encode() for i in range(60)
]


def run(folder, sequence_len=4096, takes_judged=False, **spec):
    (folder / "out").mkdir()
    settings = {"near_duplicate_threshold": 1.0, "max_quarantine_share": 1.0, "allow_no_dev": True} | spec
    how = {"codec": WordCodec(), "sequence_len": sequence_len, "out": folder / "out", "base_dir": folder}
    summary = prepare(DataSpec(**settings), takes_judged=takes_judged, **how)
    for file in summary.files:
        assert file.rows_read == file.rows_kept + file.rows_quarantined
    return summary, {entry.line: entry for entry in read_quarantine(folder / "out/quarantine.jsonl")}


def check(folder, name, lines, cases, **spec):
    """Line by line: the case that stands there is kept, or aside for its reason with its very bytes."""
    (folder / name).write_bytes(b"".join(lines))
    summary, aside = run(folder, train=(name,), **spec)
    starts = [1 + b"".join(lines[:i]).count(b"\n") for i in range(len(lines))]
    for (case, words), line, raw in zip(cases, starts, lines, strict=True):
        if words:
            assert line in aside and words in aside[line].detail, (case, aside.get(line))
            assert retrieve(aside[line], folder) == raw, case
        else:
            assert line not in aside, (case, aside.get(line))
    return summary


def test_bad_rows_of_conversations(tmp_path):
    cases = [("good", "")] * len(GOOD) + [(name, words) for name, (_, words) in (CHAT | LINES).items()]
    raw = [*GOOD, *(json.dumps(row).encode() for row, _ in CHAT.values()), *(line for line, _ in LINES.values())]
    summary = check(tmp_path, "a.jsonl", [line + b"\n" for line in raw], cases)
    assert summary.rows_read == len(raw) and summary.rows_quarantined == sum(bool(words) for _, words in cases)


def test_bad_rows_of_preference_data(tmp_path):
    good = [{"prompt": f"good {i} w{i}", "chosen": f"a{i}", "rejected": "b"} for i in range(30)]
    cases = [("good", "")] * 30 + [(name, words) for name, (_, words) in PAIRS.items()]
    raw = [json.dumps(row).encode() + b"\n" for row in (*good, *(row for row, _ in PAIRS.values()))]
    assert check(tmp_path, "a.jsonl", raw, cases, takes_judged=True).rows_quarantined == len(PAIRS)


def test_bad_rows_of_csv(tmp_path):
    good = [f"good question {i} about w{i},a{i}\n".encode() for i in range(30)]
    cases = [("header", ""), *[("good", "")] * 30, *((name, words) for name, (_, words) in CSV.items())]
    lines = [b"prompt,completion\n", *good, *(line for line, _ in CSV.values())]
    assert check(tmp_path, "a.csv", lines, cases).rows_read == 30 + len(CSV)


@pytest.mark.parametrize("case", SETS)
def test_bad_sets(tmp_path, case):
    """Each whole set: refused with the next move, or prepared with every row accounted for by its reason."""
    one = SETS[case]
    for name, data in one.files.items():
        (tmp_path / name).write_bytes(data)
    names = {
        "train": tuple(n for n in one.files if n[:4] != "test"),
        "test": tuple(n for n in one.files if n[:4] == "test"),
    }
    if one.refused:
        with pytest.raises(DataError, match=re.escape(one.refused)) as caught:
            run(tmp_path, one.sequence_len, **names, **one.settings)
        assert caught.value.hint
        return
    summary, _ = run(tmp_path, one.sequence_len, **names, **one.settings)
    assert summary.quarantined == one.aside
    assert summary.rows_read == summary.rows_kept + sum(one.aside.values()) == sum(f.rows_read for f in summary.files)
    assert one.warning in "\n".join(summary.warnings)
    if not one.warning:
        assert not any("type" in words or "bytes" in words for words in summary.warnings)


def test_pictures_beside_text_stay_behind_in_no_conversion(tmp_path):
    """What a container cannot hold is set aside by its column's name, not dropped from the row."""
    data = SETS["a Parquet file with pictures beside the text"].files["a.parquet"]
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(DataError, match="none of its 20 rows can be written: column 'image' holds bytes"):
        convert(tmp_path / "a.parquet", tmp_path / "b.jsonl")


def test_the_page_lists_the_cases():
    assert MARKS[0] + table() + MARKS[1] in PAGE.read_text(), "python -m tests.data.bad_input writes it"


def test_sets_that_cannot_be_split_and_files_that_lie(tmp_path):
    (tmp_path / "one.jsonl").write_bytes(GOOD[0])
    with pytest.raises(DataError, match="make no"):
        run(tmp_path, train=("one.jsonl",), allow_no_dev=False)
    (tmp_path / "out").rmdir()
    (tmp_path / "tar.jsonl").write_bytes(b"../../etc/passwd".ljust(257, b"\0") + b"ustar\x0000" + b"\0" * 300)
    with pytest.raises(DataError, match="tar archive"):
        run(tmp_path, train=("tar.jsonl",))


@pytest.mark.slow
def test_four_processes_on_one_output_with_one_killed_leave_it_whole(tmp_path, tiny_base):
    """The lock lets one build; whoever is killed, the next run finishes and the output verifies."""
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(GOOD) + b"\n")
    project = tmp_path / "luthier.yaml"
    project.write_text(f'model: {{base: "{tiny_base}"}}\ndata: {{train: [a.jsonl]}}\ntrain: {{sequence_len: 512}}\n')
    command = [sys.executable, "-m", "luthier", "prepare", "-c", str(project)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(4)]
    runs, until = load_project(project).output_dir, time.monotonic() + 120
    while time.monotonic() < until and not any(runs.glob(".lock-*")) and any(p.poll() is None for p in running):
        time.sleep(0.01)
    os.kill(running[0].pid, signal.SIGKILL)
    said = [process.communicate(timeout=300)[0] for process in running]
    for process, text in zip(running[1:], said[1:], strict=True):
        assert process.returncode == 0 or "another luthier is building" in text, text
    assert subprocess.run(command, capture_output=True, timeout=300).returncode == 0
    folders = list(runs.glob("prepare-*"))
    assert len(folders) == 1 and not verify_folder(folders[0])
    assert not list(runs.glob(".lock-*")) and not list(runs.glob(".tmp-*"))

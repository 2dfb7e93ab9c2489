"""Rows beyond memory: the same folder, byte for byte, whatever the chunks and what is held."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest

from luthier.config.data import DataSpec
from luthier.data import load, spool, stored
from luthier.data.prepare import prepare
from luthier.data.quarantine import read_quarantine
from luthier.data.spill import Joined, RowStore, packed, unpacked
from luthier.data.spool import Spool
from luthier.text import shingles
from luthier.types import EncodedRow
from tests.data.stub import WordCodec
from tests.data.test_split import item

WORDS = [f"w{i}" for i in range(900)]


@pytest.fixture
def folder(tmp_path):
    """Two files with copies, near-copies, conflicts, broken lines, damaged text and personal data; prompts; a test."""
    rng = random.Random(3)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(6, 30))) for _ in range(260)]
    rows = [(text, rng.choice(("yes", "no"))) for text in texts]
    rows += [(" ".join([*text.split()[:-1], "changed"]), "yes") for text in texts[:60:2]]
    rows += [(text, "maybe") for text in texts[1:40:3]] + rows[5:25]
    rows += [(f"{texts[0]} mail me at anna{i}@example.com caf\u00c3\u00a9", "yes") for i in range(9)]
    rng.shuffle(rows)
    lines = [json.dumps({"prompt": p, "completion": a, "who": str(i % 50)}) for i, (p, a) in enumerate(rows)]
    lines[7], lines[70] = "{broken", json.dumps({"prompt": "empty", "completion": " ", "who": "x"})
    (tmp_path / "a.jsonl").write_text("\n".join(lines[:200]) + "\n")
    (tmp_path / "b.jsonl").write_text("\n".join(lines[200:]) + "\n")
    test = [{"prompt": text, "completion": "no", "who": "z"} for text in texts[:6]]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in test))
    (tmp_path / "new.csv").write_text("prompt\n" + "".join(f"{t}\n" for t in texts[4:9]) + "is this new?\n")
    return tmp_path


def test_token_sequences_come_back_as_they_went():
    """Ids, mask, weights and companions, also those of a row with two sequences."""
    other = EncodedRow("a", (9, 8), (False, True), (0.25, 1.0))
    rows = [
        [EncodedRow("a", (1, 70_000, 3), (False, True, True), companions=(other,))],
        [EncodedRow("b", (5, 6, 7), (False, False, True)), EncodedRow("b#1", (7, 6), (False, True))],
    ]
    store = RowStore()
    store.add([packed(item("a")), packed(item("b"))], [1, 2])
    for number, sequences in enumerate(rows):
        store.add_encoded(number, sequences)
    assert list(store.sequences(np.array([1, 0]))) == rows[::-1]
    assert list(store.trained) == [3, 2] and list(store.totals) == [5, 5] and list(store.longest) == [3, 3]


def outcome(folder, name, test=(), **settings):
    out = folder / name
    out.mkdir()
    given = {"train": ("a.jsonl", "b.jsonl"), "test": test, "unlabelled": ("new.csv",), **settings}
    spec = DataSpec(**given, checks={"pii": {"email": "redact"}})
    summary = prepare(spec, codec=WordCodec(), sequence_len=512, out=out, base_dir=folder)
    summary.check_conservation()
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


@pytest.mark.parametrize("settings", [{}, {"test": ("test.jsonl",), "group_by": "who"}], ids=["split", "test file"])
def test_the_folder_does_not_depend_on_chunks_or_on_what_is_held(folder, monkeypatch, settings):
    whole = outcome(folder, "whole", **settings)
    assert len(read_quarantine(folder / "whole" / "quarantine.jsonl")) > 50
    for number, (rows, held, tokens, batch) in enumerate([(1, 0, 60, 5), (37, 1000, 300, 64), (128, 1, 1, 4096)]):
        monkeypatch.setattr(load, "CHUNK_ROWS", rows)
        monkeypatch.setattr(stored, "TOKENS_AT_ONCE", tokens)
        monkeypatch.setattr(shingles, "CHARS_AT_ONCE", 7 * tokens)
        monkeypatch.setattr(shingles, "BATCH_TEXTS", batch)
        for module in (spool, stored):
            monkeypatch.setattr(module, "HELD_BYTES", held + 1)
        monkeypatch.setattr(shingles, "HELD_SHINGLES", held)
        again = outcome(folder, f"run{number}", **settings)
        assert again == whole


PEAK = """
import json, sys
from pathlib import Path
from luthier.config.data import DataSpec
from luthier.data import spool, stored
from luthier.data.prepare import prepare
from luthier.text import shingles, similar
from tests.data.stub import WordCodec
similar._MAX_TABLE_BITS = 16
spool.HELD_BYTES = stored.HELD_BYTES = 1 << 20
shingles.HELD_SHINGLES = 1 << 16
stored.TOKENS_AT_ONCE, shingles.CHARS_AT_ONCE = 1 << 14, 1 << 18  # buffers that are full in both runs
folder = Path(sys.argv[1])
spec = DataSpec(train=("rows.jsonl",))
prepare(spec, codec=WordCodec(), sequence_len=512, out=folder / "out", base_dir=folder)
lines = Path("/proc/self/status").read_text().splitlines()
print(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the peak of a process is read from /proc")
@pytest.mark.slow
def test_a_row_more_costs_less_than_its_own_text(tmp_path):
    peak_kb, rng = {}, random.Random(5)
    for num_rows in (20_000, 60_000):
        folder = tmp_path / str(num_rows)
        (folder / "out").mkdir(parents=True)
        with (folder / "rows.jsonl").open("w") as file:
            for number in range(num_rows):
                text = f"{number} {' '.join(rng.choices(WORDS, k=9))}"
                file.write(json.dumps({"prompt": text, "completion": "yes", "note": "x" * 1000}) + "\n")
        done = subprocess.run([sys.executable, "-c", PEAK, str(folder)], capture_output=True, text=True, check=True)
        peak_kb[num_rows] = int(done.stdout)
    assert (peak_kb[60_000] - peak_kb[20_000]) * 1024 / 40_000 < 600, peak_kb  # its own text: 1,100 bytes


def test_spools_and_views(monkeypatch):
    monkeypatch.setattr(spool, "HELD_BYTES", 10)
    records, some = [bytes([65 + i]) * (i % 7) for i in range(50)], Spool()
    some.extend(records[:20])
    for record in records[20:]:
        some.append(record)
    order = random.Random(0).choices(range(50), k=200)
    assert list(some.read(order)) == [records[i] for i in order]
    assert list(some.read(range(50))) == records
    items = [item(f"text {i} \u2028 \U0001f600", f"a{i}", i, "g", "s") for i in range(9)]
    assert [unpacked(packed(one)) for one in items] == items
    view = RowStore().add([packed(one) for one in items], [int(one.row.id, 16) for one in items])
    assert list(view[2:7:2]) == items[2:7:2] and view[-1] == items[-1] and list(view) == items
    assert list(Joined(items[:4], items[4:])[1:8:3]) == items[1:8:3]

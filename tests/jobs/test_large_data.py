"""`luthier prepare` on rows that lie on disk: the same stage as in memory, through the command line."""

from __future__ import annotations

import random

from luthier.data import load, spool, stored
from luthier.store.publish import read_manifest
from luthier.text import shingles
from tests.jobs.toy import make_texts, write_project


def prepared(luthier, folder, tiny_base, *arguments):
    """(name of the stage, its files with their digests)."""
    texts = make_texts(240, seed=3)
    texts += random.Random(0).choices(texts, k=40)
    project = write_project(folder, tiny_base, texts)
    done = luthier("prepare", "-c", project, *arguments)
    assert done.exit_code == 0, done.output
    (stage,) = (folder / "runs").glob("prepare-*")
    return stage.name, read_manifest(stage)["files"]


def test_the_stage_is_the_same_on_disk_and_in_memory(luthier, tmp_path, tiny_base, monkeypatch):
    whole = prepared(luthier, tmp_path / "memory" / "p", tiny_base)
    assert len(whole[1]) > 10
    monkeypatch.setattr(load, "CHUNK_ROWS", 17)
    monkeypatch.setattr(shingles, "BATCH_TEXTS", 32)
    monkeypatch.setattr(shingles, "HELD_SHINGLES", 0)
    monkeypatch.setattr(stored, "TOKENS_AT_ONCE", 90)
    for module in (spool, stored):
        monkeypatch.setattr(module, "HELD_BYTES", 1)
    assert prepared(luthier, tmp_path / "disk" / "p", tiny_base) == whole

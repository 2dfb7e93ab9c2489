"""The data verbs as a newcomer meets them: small and hostile sets, wrong files, wrong flags, a second run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.jobs.toy import make_texts


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def pairs(num: int, seed: int = 5) -> list[dict]:
    return [{"prompt": text, "completion": label} for text, label in make_texts(num, seed)]


@pytest.fixture
def project(tmp_path, tiny_base):
    """60 rows on the tiny base."""
    write(tmp_path / "rows.jsonl", pairs(60))
    path = tmp_path / "luthier.yaml"
    path.write_text(
        f'model: {{base: "{tiny_base}"}}\ndata: {{train: [rows.jsonl]}}\n'
        "train: {sequence_len: 128, micro_batch_tokens: 128}\noutput_dir: runs\n"
    )
    return path


def words(result) -> str:
    """What was printed, without the folds of lines."""
    return " ".join(result.output.split())


def test_a_set_smaller_than_one_step_is_told_and_a_larger_one_is_not(project, luthier):
    large = luthier("prepare", "-c", project)
    assert large.exit_code == 0 and "less than one step" not in large.output
    small = luthier("prepare", "-c", project, "--set", "train.gradient_accumulation_steps=64")
    assert small.exit_code == 0 and "less than one step may take (8,192 tokens" in words(small)
    folders = list(project.parent.glob("runs/prepare-*"))
    assert len(folders) == 1, "how steps are made is no matter of the preparation"

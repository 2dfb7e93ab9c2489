"""A few trials of `make torture`: luthier passes them, and the harness can tell who does not."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="the fault shim needs a C compiler")


def _torture(results, *arguments):
    command = [sys.executable, "-m", "benchmarks.torture", "--quick", "--results", results, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(results.read_text())["rows"]


@needs_cc
def test_kills_damage_and_refusals_cost_nothing(tmp_path):
    rows = _torture(tmp_path / "results.json", "--target", "luthier")
    for row in ("R1", "R2", "R5", "R6"):
        figures = rows[row]["luthier"]
        assert figures["PASS"] == figures["trials"] > 1, (row, figures)
    assert rows["R1"]["luthier"]["exit codes"] == {"-9": rows["R1"]["luthier"]["trials"]}
    assert rows["R6"]["luthier"]["exit codes"] == {"74": 3}


@needs_cc
@pytest.mark.slow
def test_the_harness_sees_a_trainer_that_is_left_with_half_a_checkpoint(tmp_path):
    """HF Trainer takes the newest folder for a whole one."""
    figures = _torture(tmp_path / "results.json", "R1", "--target", "HF Trainer")["R1"]["HF Trainer"]
    assert figures["HARD_FAIL"] >= 1

"""Compiled row loops where the machine code cannot be kept, and where what was kept is torn."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from luthier.kernels import jit

pytestmark = pytest.mark.skipif(jit.numba is None, reason="numba has no wheel for this platform")

ROOT = Path(__file__).resolve().parents[2]
NORM = """
import torch
from luthier.kernels.norm import rms_norm
print(rms_norm(torch.tensor([[3.0, 4.0]]), torch.ones(2), 0.0).tolist())
"""


def test_without_a_place_for_its_machine_code_a_loop_is_compiled_all_the_same():
    """numba has nowhere to keep code of a source file that is not there, as in a folder that cannot be written."""
    names: dict = {}
    exec(compile("def double(x):\n    return x + x\n", "<nowhere>", "exec"), names)
    double = jit.compiled(names["double"])
    assert double(np.float32(1.5)) == 3.0 and double.signatures


@pytest.mark.parametrize(("kind", "num_bytes"), [("nbi", 0), ("nbc", 100)])
def test_torn_machine_code_is_made_again(tmp_path, kind, num_bytes):
    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}

    def run() -> str:
        done = subprocess.run([sys.executable, "-c", NORM], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = run()
    files = list(tmp_path.rglob(f"*.{kind}"))
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[:num_bytes])
    assert run() == first
    assert all(path.stat().st_size > num_bytes for path in files)


def test_machine_code_is_not_kept_where_everybody_can_write(tmp_path):
    """numba unpickles what it finds there: whoever can write into the folder could run code as this user."""
    source = tmp_path / "loops.py"
    source.write_text("def double(x):\n    return x + x\n")
    names: dict = {}
    exec(compile(source.read_text(), str(source), "exec"), names)
    for mode, kept in ((0o755, True), (0o777, False)):
        (tmp_path / "__pycache__").mkdir(exist_ok=True)
        (tmp_path / "__pycache__").chmod(mode)
        double = jit.compiled(names["double"])
        assert double(np.float32(1.5)) == 3.0
        assert bool(list((tmp_path / "__pycache__").glob("*.nbi"))) is kept
        for path in (tmp_path / "__pycache__").iterdir():
            path.unlink()

"""Compiled row loops where the machine code cannot be kept, and where what was kept is torn."""

import os
import subprocess
import sys
import time
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


@pytest.mark.parametrize(("kind", "num_bytes"), [("nbi", 0), pytest.param("nbc", 100, marks=pytest.mark.slow)])
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


FULL = """
import logging, resource, signal, sys
import numpy as np
from luthier.kernels import jit
logging.basicConfig(format="%(message)s")
names = {}
exec(compile(open(sys.argv[1]).read(), sys.argv[1], "exec"), names)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
out = np.zeros(8, np.float32)
jit.over_pieces(names["outer"], [0, 4, 8], out)
print(out.tolist())
"""
LOOPS = """
from luthier.kernels import jit
@jit.compiled
def inner(x):
    return x + 1
@jit.compiled
def outer(first, last, x):
    for i in range(first, last):
        x[i] = inner(x[i]) + 1
"""


def test_a_full_disk_is_said_once_and_the_loops_run_from_memory(tmp_path):
    """A real error of the kernel at each write of the cache, of a loop and of the loop that it calls."""
    source = tmp_path / "loops.py"
    source.write_text(LOOPS)
    done = subprocess.run(
        [sys.executable, "-c", FULL, source], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.stdout == f"{[2.0] * 8}\n", done.stderr
    assert done.stderr.count("compiled loops cannot be kept in ") == 1 and "File too large" in done.stderr
    assert not list(tmp_path.rglob("*.nb?"))


@pytest.mark.slow
def test_four_processes_and_a_kill_leave_the_machine_code_whole(tmp_path):
    """The first is killed as soon as it has kept something; the others, and one more, compute what they should."""
    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", NORM]
    racers = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    while racers[0].poll() is None and not list(tmp_path.rglob("*.nb*")):
        time.sleep(0.001)
    racers[0].kill()
    said = {racer.communicate(timeout=120)[0] for racer in racers[1:]}
    last = subprocess.run(command, env=env, capture_output=True, text=True)
    assert len(said) == 1 and said == {last.stdout} and last.stdout and not last.stderr


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

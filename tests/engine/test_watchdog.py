"""A hang really ends the process, with its stacks on disk; a run that moves is left alone."""

import subprocess
import sys

import pytest

from luthier.engine.watchdog import EXIT_CODE, Watchdog

STUCK = """
import os, signal, subprocess, sys, time
from pathlib import Path
from luthier.engine.watchdog import Watchdog
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
os.kill(child.pid, signal.SIGSTOP)
print(child.pid, flush=True)
dog = Watchdog(0.5, Path(sys.argv[1]))
for _ in range(4):
    time.sleep(0.02)
    dog.beat()
child.stdout.read()  # never comes
"""


def test_a_process_that_waits_for_a_stopped_child_is_ended_with_its_stacks(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", STUCK, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert child.wait(timeout=60) == EXIT_CODE
    finally:
        subprocess.run(["kill", "-9", child.stdout.readline().decode().strip()], check=False)
    assert b"nothing has moved for" in child.stderr.read()
    assert 'File "<string>", line 12' in (tmp_path / "hang.txt").read_text()


@pytest.mark.parametrize("timeout_s", [0.2, None])
def test_a_run_that_moves_leaves_nothing_behind(tmp_path, timeout_s):
    dog = Watchdog(timeout_s, tmp_path)
    dog.beat()
    dog.close()
    assert list(tmp_path.iterdir()) == []

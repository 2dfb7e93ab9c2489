"""Runs a luthier command and sends it a signal, once, at the n-th call of a function of luthier (or at an import).

python -m tests.jobs.signalled FILE:FUNCTION:N[:SIGNAL] VERB ...   or   import:MODULE VERB ...     (SIGTERM)
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def kill_at(place: str, *arguments: object) -> None:
    """Runs a verb in a process of its own until SIGKILL ends it at FILE:FUNCTION:N."""
    killed = subprocess.run(
        [sys.executable, "-m", "tests.jobs.signalled", f"{place}:SIGKILL", *map(str, arguments)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr


def strike(name: str = "SIGTERM") -> None:
    """As `kill PID` from another terminal."""
    os.kill(os.getpid(), signal.Signals[name])


def at_import(wanted: str) -> None:
    """When the module begins to be imported."""
    todo = [wanted]

    def watch(event, arguments):
        if event == "import" and todo and arguments[0] == wanted:
            todo.clear()
            strike()

    sys.addaudithook(watch)


def at_call(file: str, function: str, number: str, name: str = "SIGTERM") -> None:
    """When luthier's `file` calls `function` for the n-th time."""
    left = [int(number)]

    def watch(frame, event, argument):
        code = frame.f_code
        if event == "call" and code.co_name == function and code.co_filename.endswith(f"/luthier/{file}"):
            left[0] -= 1
            if not left[0]:
                sys.setprofile(None)
                strike(name)

    sys.setprofile(watch)


if __name__ == "__main__":
    place = sys.argv.pop(1).split(":")
    if place[0] == "import":
        at_import(place[1])
    else:
        at_call(*place)
    from luthier.cli import main

    main()

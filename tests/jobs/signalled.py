"""Runs a luthier command and sends it a signal, once, at the n-th call of a function of luthier (or at an import).

python -m tests.jobs.signalled FILE:FUNCTION:N[:SIGNAL] VERB ...   or   import:MODULE VERB ...     (SIGTERM)
"""

import os
import signal
import sys


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

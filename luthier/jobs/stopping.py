"""Stopping on a signal: the first one asks, the second stops at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from luthier.errors import Interrupted
from luthier.jobs import console


@contextmanager
def stop_flag() -> Iterator[Callable[[], bool]]:
    """Inside, the first SIGINT or SIGTERM only asks the loop to save and stop; a second one stops at once."""
    asked: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: object) -> None:
        asked.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)
        console.line("stopping after this step; press again to stop at once", "yellow")

    for number in before:
        signal.signal(number, ask)
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_here(asked: bool) -> None:
    """After its last step: what follows in the same command must not begin."""
    if asked:
        raise Interrupted(
            "stopped after the last step; all of it is saved", hint="run the same command again: it goes on from there"
        )

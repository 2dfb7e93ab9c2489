"""Ends a process that hangs: a stuck disk, tracker, loader or lock must not hold a machine for a weekend.

Every move of the run (micro-batch, sampled token, dev batch, save) is a beat. When beats stay away for too long, the
stacks of all threads go to `hang.txt` and the process ends, at once and for good: an exception raised in another thread
would end that thread only. A second clock, in C (faulthandler), stands behind the first: it needs no interpreter lock,
so it also ends a process that is stuck inside a library.
"""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

EXIT_CODE = 75  # as an interruption: the same command goes on
LONGEST_MOVES = 20
_GRACE_S = 30.0


class Watchdog:
    """timeout_s: the least silence that counts as a hang; None: nothing is watched. `close` it when the run is over."""

    def __init__(self, timeout_s: float | None, run_dir: Path) -> None:
        self.timeout_s, self.path = timeout_s, run_dir / "hang.txt"
        self._last_s, self._longest_s, self._armed_s, self._closed = time.monotonic(), 0.0, 0.0, threading.Event()
        if timeout_s is None:
            return
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115
        self._arm()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @property
    def limit_s(self) -> float:
        """How long a silence may be now."""
        return max(self.timeout_s or 0.0, LONGEST_MOVES * self._longest_s)

    def beat(self) -> None:
        """Something moved."""
        now_s = time.monotonic()
        self._longest_s, self._last_s = max(self._longest_s, now_s - self._last_s), now_s
        if self.timeout_s is not None and not self._closed.is_set() and now_s - self._armed_s > self.limit_s / 10:
            self._arm()

    def close(self) -> None:
        """Stops watching, and leaves no empty file behind."""
        if self.timeout_s is None or self._closed.is_set():
            return
        self._closed.set()
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        with suppress(OSError):  # on a disk turned read-only it stays, and what ended the run is told
            if not self.path.stat().st_size:
                self.path.unlink()

    def _arm(self) -> None:
        self._armed_s = time.monotonic()
        faulthandler.dump_traceback_later(1.2 * self.limit_s + _GRACE_S, exit=True, file=self._file)

    def _watch(self) -> None:
        while not self._closed.wait(max(0.05, self._last_s + self.limit_s - time.monotonic())):
            silence_s = time.monotonic() - self._last_s
            if silence_s >= self.limit_s:
                self._end(silence_s)

    def _end(self, silence_s: float) -> None:
        self._file.write(f"nothing moved for {silence_s:.1f} s\n")
        self._file.flush()
        faulthandler.dump_traceback(self._file, all_threads=True)
        said = (
            f"\nerror: nothing has moved for {silence_s:.1f} s; the run is ended, its stacks are in {self.path}\n"
            "hint: the same command goes on from the last checkpoint; train.hang_timeout_s says how long to wait\n"
        )
        os.write(2, said.encode())
        os._exit(EXIT_CODE)

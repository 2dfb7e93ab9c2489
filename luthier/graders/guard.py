"""Reward functions that raise, hang or return no number cost one sample, not the run.

The function lives in a process of its own (a fork, so that closures work), which is killed and started again when it
does not answer in time: a thread could not be stopped, and a search in C does not even let others run.
"""

from __future__ import annotations

import json
import math
import numbers
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import Any

from luthier.graders.grader import Task

MAX_ERRORS = 100
MAX_ERROR_CHARS = 300
RewardFunction = Callable[[str, str, Task], Any]


@dataclass(frozen=True)
class Reward:
    """value: a finite number, or None with the reason in `error`: leave the sample out."""

    value: float | None
    error: str = ""


@dataclass(frozen=True)
class RewardError:
    """What went wrong with which answer (both shortened)."""

    error: str
    answer: str


def _work(connection: Connection[Any, Any], function: RewardFunction) -> None:
    while True:
        try:
            answer, reference, task = connection.recv()
        except EOFError:
            return
        try:
            value = function(answer, reference, task)
            reply = {"value": _number(value)}
        except BaseException as error:
            reply = {"error": f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARS]}
        connection.send_bytes(json.dumps(reply).encode())


def _number(value: Any) -> float:
    if not isinstance(value, numbers.Real):
        raise TypeError(f"it gave a {type(value).__name__}, not a number")
    if not math.isfinite(value):
        raise ValueError(f"it gave {value}")
    return float(value)


class GuardedReward:
    """A grader's `grade`, or any function of its signature, behind a time limit. errors: the first MAX_ERRORS of
    num_errors."""

    def __init__(self, function: RewardFunction, *, time_limit_s: float = 10.0) -> None:
        self._function, self._time_limit_s = function, time_limit_s
        self._child: int | None = None
        self._owner = 0
        self.errors: list[RewardError] = []
        self.num_errors = 0

    def _start(self) -> None:
        self._connection, theirs = Pipe()
        self._owner, self._child = os.getpid(), os.fork()
        if self._child == 0:
            try:
                self._connection.close()
                _work(theirs, self._function)
            finally:
                os._exit(0)
        theirs.close()

    def __call__(self, answer: str, reference: str = "", task: Task | None = None) -> Reward:
        """The reward of one answer. Never raises for what the function does."""
        if self._child is None or self._owner != os.getpid():  # the child of a process that forked us is not ours
            self._start()
        try:
            self._connection.send((answer, reference, task or Task()))
            if not self._connection.poll(self._time_limit_s):
                self.close()
                return self._failed(answer, f"no answer within {self._time_limit_s:g} s")
            reply = json.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            return self._failed(answer, f"its process ended (exit code {self.close()})")
        return self._failed(answer, reply["error"]) if "error" in reply else Reward(reply["value"])

    def _failed(self, answer: str, error: str) -> Reward:
        self.num_errors += 1
        if len(self.errors) < MAX_ERRORS:
            self.errors.append(RewardError(error, answer[:MAX_ERROR_CHARS]))
        return Reward(None, error)

    def close(self) -> int | None:
        """Ends its process (the next call starts another) and returns the exit code."""
        child, self._child = self._child, None
        if child is None or self._owner != os.getpid():
            return None
        self._connection.close()
        for _ in range(20):  # it may be ending by itself
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

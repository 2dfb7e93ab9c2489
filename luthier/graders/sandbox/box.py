"""The sandbox for programs that nobody has read: every layer on, and attacked by itself before the first run.

    with Sandbox() as sandbox:
        result = sandbox.run("def add(a, b): return a + b", "assert add(1, 2) == 3")

What each layer stops, and what is not promised, stands in docs/sandbox.md.
"""

from __future__ import annotations

import atexit
import os
import queue
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from luthier.errors import EvaluateError
from luthier.graders.sandbox.attack import self_attack
from luthier.graders.sandbox.limits import LAYERS, Limits, Result
from luthier.graders.sandbox.runner import Runner

REQUIRED = ("rlimits", "no_new_privs", "landlock", "seccomp")


class Sandbox(Runner):
    """Raises EvaluateError when a layer is missing (or left out) or one of its own attacks succeeds."""

    def __init__(self, paths: Sequence[Path] = (), layers: Sequence[str] = LAYERS) -> None:
        if sys.platform != "linux":
            raise EvaluateError(
                f"generated code runs on Linux only, this is {sys.platform}", hint="evaluate on a Linux machine"
            )
        super().__init__(layers, paths)
        required = {*REQUIRED, "uid"} if os.geteuid() == 0 else {*REQUIRED}
        missing = sorted(required - set(self.greeting["layers"]))
        found = [f"without {name}" for name in missing] or self_attack(self.run)
        if found:
            self.close()
            raise EvaluateError(
                f"generated code is not run here: the sandbox does not stop {', '.join(found)}",
                hint="docs/sandbox.md says what each layer needs; nothing is run without it",
            )


class SandboxPool:
    """Several sandboxes side by side, one a core, each started when it is first needed."""

    def __init__(self, paths: Sequence[Path] = (), size: int = 0) -> None:
        self._paths, self.size = tuple(paths), size or len(os.sched_getaffinity(0))
        self._free: queue.SimpleQueue[Sandbox | None] = queue.SimpleQueue()
        self._all = [Sandbox(self._paths)]
        self._free.put(self._all[0])
        for _ in range(self.size - 1):
            self._free.put(None)

    @property
    def tier(self) -> str:
        """Label of the layers that hold."""
        return self._all[0].tier

    def run(self, program: str, tests: str, limits: Limits | None = None, *, entry_point: str = "") -> Result:
        """One run on whichever sandbox is free."""
        sandbox = self._free.get()
        try:
            if sandbox is None:
                sandbox = Sandbox(self._paths)
                self._all.append(sandbox)
            return sandbox.run(program, tests, limits=limits, entry_point=entry_point)
        finally:
            self._free.put(sandbox)

    def run_all(self, jobs: Iterable[tuple[str, str, str]], limits: Limits | None = None) -> list[Result]:
        """(program, tests, entry point) -> results, in order."""
        with ThreadPoolExecutor(self.size) as threads:
            return list(threads.map(lambda job: self.run(job[0], job[1], limits, entry_point=job[2]), jobs))

    def close(self) -> None:
        """Ends all of them."""
        for sandbox in self._all:
            sandbox.close()


def shared_pool(paths: tuple[Path, ...] = ()) -> SandboxPool:
    """The pool of this process for these paths as they are now, closed when the process ends."""
    files = [(str(file), file.stat()) for path in paths for file in sorted(path.rglob("*.py"))]
    return _pool_of(os.getpid(), paths, tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in files))


@cache
def _pool_of(process: int, paths: tuple[Path, ...], state: tuple[tuple[str, int, int], ...]) -> SandboxPool:
    pool = SandboxPool(paths)
    atexit.register(pool.close)
    return pool


def sandbox_tier() -> str:
    """Label of the layers that hold on this machine, or `none: <why>`. Starts a sandbox once (under a second)."""
    try:
        return shared_pool().tier
    except EvaluateError as error:
        return f"none: {error}"

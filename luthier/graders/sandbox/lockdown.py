"""Putting the layers on: what a child does to itself between its fork and the first byte of foreign code.

The order matters: a session of its own, limits, another user, no new privileges, then Landlock and seccomp, which
need that and forbid the rest.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from luthier.graders.sandbox import kernel
from luthier.graders.sandbox.limits import MAX_FILE_BYTES
from luthier.graders.sandbox.syscalls import filter_program, packed

SYSTEM_PATHS = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo", "/etc/ld.so.cache")
"""Besides the interpreter's own library: shared libraries, and the time zones."""
DEVICES = {"/dev/null": kernel.READ_FILE | kernel.WRITE_FILE, "/dev/urandom": kernel.READ_FILE}

FIRST_RULE = 400
"""Descriptors from here on belong to the rules, out of the way of a run's own."""


@dataclass(frozen=True)
class Lockdown:
    """layers: names of limits.LAYERS. uid: to become, None when not started as root. max_processes: RLIMIT_NPROC.
    rules: Landlock's, open descriptors with rights."""

    layers: frozenset[str]
    machine: str
    uid: int | None
    max_processes: int
    rules: tuple[tuple[int, int], ...]

    def enter(self, folder: str, wall_s: float, memory_bytes: int, num_descriptors: int) -> None:
        """Locks this process in `folder`. There is no way back. Raises OSError when a layer cannot be put on."""
        os.chdir(folder)
        own = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        os.setsid()
        if "rlimits" in self.layers:
            _limit(wall_s, memory_bytes, num_descriptors, self.max_processes)
        if self.uid is not None:
            os.setgroups([])
            os.setresgid(self.uid, self.uid, self.uid)
            os.setresuid(self.uid, self.uid, self.uid)
        kernel.drop_capabilities(self.machine)
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)  # changing the user has cleared it
        if "no_new_privs" in self.layers:
            kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        if "landlock" in self.layers:
            kernel.landlock((*self.rules, (own, kernel.WRITE)))
        os.close(own)
        for descriptor, _ in self.rules:
            os.close(descriptor)
        if "seccomp" in self.layers:
            kernel.seccomp(self.machine, packed(filter_program(self.machine, os.getpid())))


def _limit(wall_s: float, memory_bytes: int, num_descriptors: int, max_processes: int) -> None:
    limits = {
        resource.RLIMIT_CPU: ceil(wall_s),
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: MAX_FILE_BYTES,
        resource.RLIMIT_NOFILE: num_descriptors,
        resource.RLIMIT_NPROC: max_processes,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for which, value in limits.items():
        hard = resource.getrlimit(which)[1]
        capped = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (capped, capped))


def landlock_rules(readable: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Opens what a run may read (`readable` and the system's libraries) and the two devices; absent paths are none."""
    wanted = {**dict.fromkeys((*readable, *SYSTEM_PATHS), kernel.READ), **DEVICES}
    rules = []
    for path, rights in wanted.items():
        if Path(path).exists():
            narrowed = rights if Path(path).is_dir() else rights & kernel.OF_FILES
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
            rules.append((os.dup2(opened, FIRST_RULE + len(rules), inheritable=False), narrowed))
            os.close(opened)
    return tuple(rules)

"""What a run in the sandbox may use, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["passed", "failed", "timeout", "killed", "refused"]
LAYERS = ("namespaces", "uid", "rlimits", "no_new_privs", "landlock", "seccomp")
"""In the order in which a child puts them on. namespaces is used where the kernel lets us; the others are required
(uid only when started as root)."""
MAX_SOURCE_BYTES = 1 << 20
"""Of a program, and of its tests."""
MAX_OUTPUT_BYTES = 64 << 10
"""Kept of what a program prints."""
MAX_FLOOD_BYTES = 16 << 20
"""A program that prints more is killed."""
MAX_FILES = 1000
"""Files and folders in the run's own folder; more, and the run is killed."""
MAX_FILE_BYTES = 16 << 20
MAX_FOLDER_BYTES = 64 << 20


@dataclass(frozen=True)
class Limits:
    """wall_s: of program and tests together; CPU time is held to the next whole second above it. memory_bytes: address
    space of each of the two processes."""

    wall_s: float = 10.0
    memory_bytes: int = 512 << 20
    num_threads: int = 64
    num_descriptors: int = 64


@dataclass(frozen=True)
class Result:
    """status: passed (every test ran and held), failed (a test or the program raised), timeout (wall or CPU time),
    killed (by a signal, or for its output or files), refused (nothing was run). problem: why, in one line, '' when
    passed. output: what the program printed, bounded. tier: label of the layers that held.
    """

    status: Status
    problem: str = ""
    output: str = ""
    tier: str = ""
    took_s: float = 0.0
    cpu_s: float = 0.0
    peak_bytes: int = 0

    @property
    def passed(self) -> bool:
        """Did every test hold?"""
        return self.status == "passed"

"""One process at a time: a lock file that dies with its holder and says who that is.

The lock is the kernel's (flock), so that a killed holder never blocks anybody. Where a file system knows no locks, the
record in the file decides: its holder counts as alive while this very process (pid, start time, boot) still runs.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from luthier.errors import ArtifactError

_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EOPNOTSUPP}


@contextmanager
def locked(path: Path, *, what: str, wait: bool = False, hint: str = "") -> Iterator[None]:
    """Holds the lock file `path` inside. wait: until its holder is done. what: as an error names it.

    The file is removed at the end, so one that was locked after its removal counts for nothing. Raises ArtifactError
    naming the holder when there is one, OSError when the file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = _take(path, wait=wait)
    if handle is None:
        raise ArtifactError(f"{what} is in use by another luthier{_shown(path)}", hint=hint)
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(_me()).encode(), 0)
        yield
    finally:
        with suppress(OSError):  # a disk turned read-only must not hide what ended the work; a free lock bars nobody
            path.unlink(missing_ok=True)
        os.close(handle)


def _take(path: Path, *, wait: bool) -> int | None:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        except OSError as error:
            free = error.errno in _NO_LOCKS and not _is_alive(_holder(path))
        if free and _is_the_file(path, handle):
            return handle
        os.close(handle)
        if not free:
            return None


def _is_the_file(path: Path, handle: int) -> bool:
    """False when the holder before removed the file that `handle` has locked."""
    return path.exists() and path.stat().st_ino == os.fstat(handle).st_ino


def _me() -> dict[str, str | int]:
    pid = os.getpid()
    return {"pid": pid, "started": _started(pid), "boot": _boot(), "host": socket.gethostname()}


def _holder(path: Path) -> dict[str, str | int]:
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _is_alive(holder: dict[str, str | int]) -> bool:
    pid = holder.get("pid")
    return isinstance(pid, int) and holder.get("boot") == _boot() and holder.get("started") == _started(pid)


def _shown(path: Path) -> str:
    holder = _holder(path)
    return f" (process {holder['pid']} on {holder['host']})" if holder.keys() >= {"pid", "host"} else ""


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process began, in clock ticks since boot ('' when there is no such process): tells a pid used again."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""

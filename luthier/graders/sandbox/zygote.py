"""The process that every run is forked from: a bare interpreter (-S, no environment, isolated path) that has imported
what programs commonly use, and nothing of ours but this folder.

It reads one job at a time from a socket: a JSON header and four descriptors (program, tests, verdict, output). It forks
the two processes of the job, which read their texts themselves: the zygote never holds a text, so no run can find
another's tests in its memory. When the socket closes, everything it started is killed.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import platform
import random
import select
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from luthier.graders.sandbox import kernel
from luthier.graders.sandbox.limits import MAX_SOURCE_BYTES
from luthier.graders.sandbox.lockdown import Lockdown, landlock_rules
from luthier.graders.sandbox.program import serve_program
from luthier.graders.sandbox.syscalls import ARCHES
from luthier.graders.sandbox.verdict import judge_program

COMMON = """
abc array base64 binascii bisect calendar cmath collections.abc contextlib copy csv dataclasses datetime decimal enum
fractions functools hashlib heapq html io itertools json math numbers operator pathlib pprint queue random re secrets
statistics string struct textwrap threading time typing unicodedata urllib.parse uuid socket asyncio unittest
unittest.mock
"""
NAMESPACES = kernel.CLONE_NEWPID | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
MAX_MESSAGE_BYTES = 1 << 16
INBOX, OUTBOX, SOURCE, VERDICT = 3, 4, 5, 6
FIRST_MOVED, FIRST_LIBRARY = 300, 500
"""Where descriptors stand while they are put in order, and where those of the library stay."""


@dataclass(frozen=True)
class Setup:
    """What the parent asks for (JSON on the command line). layers: those to use. uid: None unless we are root.
    paths: folders that programs may read and import from. root: the folder that holds this package."""

    layers: list[str]
    uid: int | None
    max_processes: int
    paths: list[str]
    root: str


def main(control: int, setup_json: str) -> None:
    """Entered once, by `python -S -c`."""
    setup = Setup(**json.loads(setup_json))
    channel = socket.socket(fileno=control)
    try:
        zygote = _prepare(setup, channel)
    except Exception as error:
        channel.send(json.dumps({"error": f"{type(error).__name__}: {error}"[:2000]}).encode())
        return
    with channel:
        _serve(channel, zygote)


def _prepare(setup: Setup, channel: socket.socket) -> Lockdown:
    """Imports, namespaces (the process that returns is then the first of a PID namespace), rules; greets the parent."""
    machine = platform.machine()
    layers = set(setup.layers)
    if machine not in ARCHES:
        raise OSError(f"there is no system-call table for {machine}")
    if "landlock" in layers and kernel.landlock_abi() == 0:
        raise OSError("this kernel has no Landlock (it needs Linux 5.13 with lsm=landlock)")
    os.environ.clear()
    sys.path.remove(setup.root)
    library = [path for path in sys.path if Path(path).is_dir()]
    for name in COMMON.split():
        importlib.import_module(name)
    why_not = ""
    if "namespaces" in layers:
        why_not = _enter_namespaces(channel)
        if why_not:
            layers.discard("namespaces")
    rules = landlock_rules([*library, *setup.paths]) if "landlock" in layers else ()
    sys.path[:] = [*library, *setup.paths]
    if setup.uid is not None:
        _reach_library(library)
    else:
        layers.discard("uid")
    greeting = {"layers": sorted(layers), "landlock_abi": kernel.landlock_abi(), "no_namespaces": why_not}
    channel.send(json.dumps(greeting).encode())
    return Lockdown(frozenset(layers), machine, setup.uid if "uid" in layers else None, setup.max_processes, rules)


def _in_child(action: Callable[[], None]) -> bool:
    """Does `action` work, tried in a process of its own?"""
    child = os.fork()
    if child == 0:
        try:
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def _unshare() -> None:
    """New namespaces; an ordinary user needs a user namespace around them, in which it keeps its own number."""
    uid, gid = os.getuid(), os.getgid()
    if uid == 0:
        kernel.unshare(NAMESPACES)
        return
    kernel.unshare(kernel.CLONE_NEWUSER | NAMESPACES)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        Path(f"/proc/self/{name}").write_text(text)


def _try_namespaces() -> None:
    _unshare()
    if not _in_child(lambda: None):
        raise OSError("no process can be made in the new namespace")


def _enter_namespaces(channel: socket.socket) -> str:
    """Returns '' in the first process of the new namespaces, or why there are none. The outer process only waits."""
    if not _in_child(_try_namespaces):
        return "the kernel or a security policy does not let this user make namespaces"
    _unshare()
    inner = os.fork()
    if inner:
        channel.close()
        os._exit(os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]) & 0xFF)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    return ""


def _reach_library(library: list[str]) -> None:
    """Where another user could not walk to the interpreter's library (below /root, say), it is reached through open
    descriptors instead: a process may always walk through its own /proc/self/fd."""
    for place, path in enumerate(library):
        parents = [Path(path), *Path(path).parents]
        if all(parent.stat().st_mode & 0o001 for parent in parents):
            continue
        descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        through = f"/proc/self/fd/{os.dup2(descriptor, FIRST_LIBRARY + place)}"
        sys.path[sys.path.index(path)] = through
        for module in list(sys.modules.values()):
            search = getattr(module, "__path__", None)
            if isinstance(search, list):
                search[:] = [through + entry[len(path) :] if entry.startswith(path) else entry for entry in search]
    sys.path_importer_cache.clear()


def _serve(channel: socket.socket, lockdown: Lockdown) -> None:
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, MAX_MESSAGE_BYTES, 4)
        if not message:
            return
        job = json.loads(message)
        program_in, tests_out = os.pipe()
        tests_in, program_out = os.pipe()
        program, tests, verdict, output = descriptors
        null = os.open(os.devnull, os.O_RDWR)
        ours = [program_in, tests_out, tests_in, program_out, null, *descriptors]
        children = {
            "program": _start("program", job, lockdown, [null, output, output, program_in, program_out, program]),
            "tests": _start("tests", job, lockdown, [null, null, null, tests_in, tests_out, tests, verdict]),
        }
        for descriptor in ours:
            os.close(descriptor)
        select.select([channel], [], [])  # the word to stop, or the end of the parent
        channel.recv(1)
        ended = {name: _stop(child) for name, child in children.items()}
        channel.send(json.dumps(ended).encode())


def _stop(child: int) -> dict[str, Any]:
    """Kills a process with all that is in its group, and says how it ended (it may have done so before)."""
    for signalled in (lambda: os.killpg(child, signal.SIGKILL), lambda: os.kill(child, signal.SIGKILL)):
        with contextlib.suppress(ProcessLookupError):
            signalled()
    _, status, usage = os.wait4(child, 0)
    peak_bytes = usage.ru_maxrss << 10
    return {"exit": os.waitstatus_to_exitcode(status), "cpu_s": usage.ru_utime + usage.ru_stime, "peak": peak_bytes}


def _start(role: str, job: dict[str, Any], lockdown: Lockdown, descriptors: list[int]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        _arrange(descriptors, {rule for rule, _ in lockdown.rules})
        lockdown.enter(job["folder"], job["wall_s"], job["memory_bytes"], job["num_descriptors"])
        text = os.pread(SOURCE, MAX_SOURCE_BYTES, 0).decode()
        os.close(SOURCE)
        random.seed(0)
        with contextlib.redirect_stdout(_printer(1)), contextlib.redirect_stderr(_printer(2)):
            if role == "program":
                serve_program(INBOX, OUTBOX, job["module"], text)
            else:
                judge_program(INBOX, OUTBOX, VERDICT, job["module"], text, job["entry_point"])
    except BaseException as error:
        os.write(2, f"{role} could not start: {error}\n".encode())
    finally:
        os._exit(0)
    return 0


def _printer(descriptor: int) -> TextIO:
    return open(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _arrange(descriptors: list[int], kept: set[int]) -> None:
    """Puts the descriptors at 0, 1, 2, ... and closes all others, except those of the rules and of the library."""
    high = [os.dup2(descriptor, FIRST_MOVED + place) for place, descriptor in enumerate(descriptors)]
    for place, descriptor in enumerate(high):
        os.dup2(descriptor, place)
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        if descriptor >= len(descriptors) and descriptor not in kept and descriptor < FIRST_LIBRARY:
            with contextlib.suppress(OSError):
                os.close(descriptor)

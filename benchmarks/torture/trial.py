"""One trial: a child process that runs a target with a fault armed, and how it ended.

Everything heavy is imported once; each trial is a fork of this process (no thread has been started before), so that a
trial costs the run and not the start-up.
"""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import os
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

OFF, COUNT, DIE, TORN, ERROR_ONCE, ERROR_FROM, SIGNAL = range(7)
SOURCE = Path(__file__).with_name("faults.c")
LIBRARY = "LUTHIER_TORTURE_FAULTS"  # where the compiled shim lies, for the process that has it preloaded
TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Fault:
    """What happens at file event `at` of the run folder (see faults.c); number: of the error or signal. term: the phase
    in which the target sends itself SIGTERM. nan_at: the optimizer step whose loss is not a number."""

    how: int = OFF
    at: int = 0
    number: int = 0
    term: str = ""
    nan_at: int = 0


@dataclass(frozen=True)
class Settings:
    """What is trained: how often it saves, and what makes an exact resume harder."""

    save_every: int = 1
    accumulation: int = 1
    dropout: float = 0.1
    steps: int = 8


@dataclass
class Ended:
    """How a child ended. code: its exit status, negative for a signal. digest: of the final weights ('' when it did not
    get there). first: the first step it took; last: the last whole one. events: lines `number what path`."""

    code: int
    seconds: float
    digest: str = ""
    first: int = 0
    last: int = 0
    said: str = ""
    facts: dict = field(default_factory=dict)
    events: list[str] = field(default_factory=list)


class Clock:
    """Two counters in memory shared with the child: the first and the last step it took. They outlive a kill. `held` is
    what the child's process held after the steps of `watch`: (seconds, bytes, open files, threads)."""

    def __init__(self, watch: tuple[int, ...] = ()) -> None:
        self.memory, self.watch = mmap.mmap(-1, 16), watch
        self.held: list[tuple[float, int, int, int]] = []

    def step(self, done: int) -> None:
        """Called by the child after a step."""
        first, _ = struct.unpack("qq", self.memory[:16])
        self.memory[:16] = struct.pack("qq", first or done, done)
        if done in self.watch:
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            counts = (len(os.listdir(f"/proc/self/{what}")) for what in ("fd", "task"))
            self.held.append((time.perf_counter(), pages * mmap.PAGESIZE, *counts))

    def read(self) -> tuple[int, int]:
        """(first, last), 0 when there was none."""
        return struct.unpack("qq", self.memory[:16])


def preloaded() -> None:
    """Starts this program again with the shim preloaded, unless it is. Needs a C compiler."""
    if os.environ.get(LIBRARY):
        return
    built = Path(os.environ.get("TMPDIR", "/tmp")) / f"luthier-faults-{os.getuid()}-{os.getpid()}.so"
    done = subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(built), str(SOURCE), "-ldl"], check=False)
    if done.returncode:
        sys.exit("error: the fault shim needs a C compiler (cc)")
    os.environ |= {LIBRARY: str(built), "LD_PRELOAD": str(built), "OMP_NUM_THREADS": "1"}
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def run_child(
    work: Callable[[Path, Settings, Fault, Clock], dict],
    folder: Path,
    settings: Settings,
    fault: Fault,
    *,
    kill_when: Callable[[float], bool] | None = None,
    watch: tuple[int, ...] = (),
) -> Ended:
    """Forks; the child runs `work` in `folder`. kill_when(seconds): SIGKILL from outside as soon as it is true.
    watch: steps after which the facts have what the process held (see Clock)."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(folder.name + ".out")
    beside.mkdir(exist_ok=True)
    for name in ("said", "result", "events"):
        (beside / name).write_text("")
    clock, began = Clock(watch), time.perf_counter()
    pid = os.fork()
    if not pid:
        _child(work, folder, beside, settings, fault, clock)
    code = _wait(pid, began, kill_when)
    result = (beside / "result").read_text()
    facts = json.loads(result) if result else {}
    first, last = clock.read()
    return Ended(
        code, time.perf_counter() - began, facts.pop("digest", ""), first, last, (beside / "said").read_text(), facts,
        (beside / "events").read_text().splitlines(),
    )  # fmt: skip


def _child(work, folder: Path, beside: Path, settings: Settings, fault: Fault, clock: Clock) -> None:
    code = 1
    try:
        said = os.open(beside / "said", os.O_WRONLY | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        events = os.open(beside / "events", os.O_WRONLY | os.O_TRUNC)
        if fault.how != OFF:
            arm = ctypes.CDLL(os.environ[LIBRARY]).faults_arm
            arm(f"{folder}/".encode(), fault.how, ctypes.c_long(fault.at), fault.number, events)
        result = work(folder, settings, fault, clock)
        (beside / "result").write_text(json.dumps(result | {"held": clock.held}))
        code = 0
    except BaseException as error:  # whatever it is: the child ends here
        traceback.print_exc()
        code = getattr(error, "exit_code", 1)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(pid: int, began: float, kill_when: Callable[[float], bool] | None) -> int:
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        spent_s = time.perf_counter() - began
        if spent_s > TIMEOUT_S or (kill_when is not None and kill_when(spent_s)):
            os.kill(pid, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        time.sleep(0.001)

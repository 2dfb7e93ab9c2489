"""The parent's side of a run: hands a job to the zygote, watches time, output and files, ends it, reads the verdict."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import random
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from math import ceil
from pathlib import Path
from typing import Any

from luthier.errors import EvaluateError
from luthier.graders.sandbox.limits import (
    LAYERS,
    MAX_FILES,
    MAX_FLOOD_BYTES,
    MAX_FOLDER_BYTES,
    MAX_OUTPUT_BYTES,
    MAX_SOURCE_BYTES,
    Limits,
    Result,
    Status,
)  # fmt: skip
from luthier.graders.sandbox.zygote import MAX_MESSAGE_BYTES, Setup

ROOT = Path(__file__).resolve().parents[3]
BOOT = (
    "import sys; sys.path[0] = sys.argv[3]; from luthier.graders.sandbox.zygote import main; "
    "main(int(sys.argv[1]), sys.argv[2])"
)
START_S, ANSWER_S, LOOK_S = 30.0, 10.0, 0.02
UIDS = range(60_000, 64_900)
"""Users to become when started as root: above those of people and services, below nobody (65534)."""
SPARE_PROCESSES = 64
MAX_VERDICT_BYTES = 4096


class Runner:
    """A started zygote, one job at a time. `layers` less than all is for showing that each one matters: only
    `box.Sandbox`, which attacks itself first, is for programs that nobody has read. paths: folders of modules that
    programs may import (copied once, read-only).
    """

    def __init__(self, layers: Sequence[str] = LAYERS, paths: Sequence[Path] = ()) -> None:
        self._wanted, self._staged = tuple(layers), _stage(paths)
        self._lock = threading.Lock()
        self._start()

    def _start(self) -> None:
        uid = _unused_uid() if "uid" in self._wanted and os.geteuid() == 0 else None
        used = 0 if uid is not None else _processes_of(os.getuid())
        folders = [str(self._staged)] if self._staged else []
        setup = Setup(list(self._wanted), uid, used + SPARE_PROCESSES, folders, str(ROOT))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._uid, self._channel = uid, ours
        with theirs:
            self._process = subprocess.Popen(
                [os.path.realpath(sys.executable), "-S", "-s", "-B", "-X", "utf8", "-c", BOOT,
                 str(theirs.fileno()), json.dumps(asdict(setup)), str(ROOT)],
                env={"PYTHONHASHSEED": "0"}, cwd="/", pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        greeting = self._receive(START_S)
        if "error" in greeting:
            self.close()
            raise EvaluateError(
                f"the sandbox cannot start: {greeting['error']}", hint="docs/sandbox.md says what it needs"
            )
        self.greeting = greeting

    @property
    def tier(self) -> str:
        """The layers that hold here, strongest first, in one label."""
        return tier_label(self.greeting)

    def _receive(self, timeout_s: float) -> dict[str, Any]:
        self._channel.settimeout(timeout_s)
        try:
            message = self._channel.recv(MAX_MESSAGE_BYTES)
        except TimeoutError:
            message = b""
        return json.loads(message) if message else {"error": "its process ended or did not answer"}

    def run(
        self, program: str, tests: str, *, limits: Limits | None = None, entry_point: str = "", module: str = "solution"
    ) -> Result:
        """Runs `program` and `tests` (docs/sandbox.md says how tests may be written). Never raises for what they do."""
        limits, started = limits or Limits(), time.monotonic()
        if why := _refusal(program, tests):
            return Result("refused", why, tier=self.tier)
        with self._lock:
            folder = tempfile.mkdtemp(prefix="luthier-run-")
            try:
                if self._uid is not None:
                    os.chown(folder, self._uid, self._uid)
                result = self._run(program, tests, limits, folder, {"entry_point": entry_point, "module": module})
            finally:
                _remove(folder)
        return replace(result, tier=self.tier, took_s=time.monotonic() - started)

    def _run(self, program: str, tests: str, limits: Limits, folder: str, more: dict[str, str]) -> Result:
        sent = [_text_descriptor(program), _text_descriptor(tests)]
        verdict_in, verdict_out = os.pipe()
        output_in, output_out = os.pipe()
        job = json.dumps({**asdict(limits), "folder": folder, **more}).encode()
        try:
            socket.send_fds(self._channel, [job], [*sent, verdict_out, output_out])
        except OSError:
            self._restart()
            return Result("killed", "the sandbox had ended and was started again")
        finally:
            for descriptor in (*sent, verdict_out, output_out):
                os.close(descriptor)
        watch = _Watch(verdict_in, output_in, folder)
        cut = watch.wait(limits.wall_s)
        ended = self._stop()
        watch.finish()
        return _result(watch, cut, ended, limits.wall_s)

    def _stop(self) -> dict[str, Any] | None:
        """Ends the job; None when the zygote does not answer (it is started again)."""
        try:
            self._channel.send(b"s")
            ended = self._receive(ANSWER_S)
        except OSError:
            ended = {"error": "gone"}
        if "error" in ended:
            self._restart()
            return None
        return ended

    def _restart(self) -> None:
        self._end()
        self._start()

    def _end(self) -> None:
        self._channel.close()
        try:
            self._process.wait(ANSWER_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """Ends the zygote and all that it started."""
        self._end()
        if self._staged:
            _remove(str(self._staged))

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Watch:
    """Reads verdict and output of one job, and looks after time, output and files while it runs."""

    def __init__(self, verdict: int, output: int, folder: str) -> None:
        self._verdict, self._output, self._folder = verdict, output, folder
        self.verdict, self.output, self.num_output_bytes = b"", b"", 0

    def wait(self, wall_s: float) -> tuple[Status, str] | None:
        """Until the tests' process has closed its verdict; or (status, why) when a limit came first."""
        deadline, next_look = time.monotonic() + wall_s, 0.0
        with selectors.DefaultSelector() as selector:
            selector.register(self._verdict, selectors.EVENT_READ)
            selector.register(self._output, selectors.EVENT_READ)
            while True:
                now = time.monotonic()
                if now >= deadline:
                    return ("timeout", f"{wall_s:g} s of wall time were up")
                if now >= next_look:
                    if why := _folder_problem(self._folder):
                        return ("killed", why)
                    next_look = now + LOOK_S
                for key, _ in selector.select(min(LOOK_S, deadline - now)):
                    ended = not self._read(key.fd)
                    if ended and key.fd == self._verdict:
                        return None
                    if ended:
                        selector.unregister(key.fd)
                if self.num_output_bytes > MAX_FLOOD_BYTES:
                    return ("killed", f"it printed more than {MAX_FLOOD_BYTES >> 20} MiB")

    def _read(self, descriptor: int) -> bool:
        data = os.read(descriptor, 1 << 16)
        if descriptor == self._verdict:
            self.verdict = (self.verdict + data)[:MAX_VERDICT_BYTES]
        else:
            self.num_output_bytes += len(data)
            self.output += data[: MAX_OUTPUT_BYTES - len(self.output)]
        return bool(data)

    def finish(self) -> None:
        """Takes what is left in the pipe of output, and closes both."""
        os.set_blocking(self._output, False)
        try:
            while self._read(self._output) and self.num_output_bytes <= MAX_FLOOD_BYTES:
                pass
        except BlockingIOError:
            pass
        os.close(self._verdict)
        os.close(self._output)


def _result(watch: _Watch, cut: tuple[Status, str] | None, ended: dict[str, Any] | None, wall_s: float) -> Result:
    """cut: the limit that ended the run, if one did. ended: how both processes ended, None when that is not known."""
    output = watch.output.decode("utf-8", "replace")
    if ended is None:
        return Result("killed", "the sandbox did not answer and was started again", output)
    cpu_s = sum(end["cpu_s"] for end in ended.values())
    result = Result("failed", "", output, cpu_s=cpu_s, peak_bytes=max(end["peak"] for end in ended.values()))
    if cut:
        return replace(result, status=cut[0], problem=cut[1])
    if any(end["cpu_s"] >= ceil(wall_s) for end in ended.values()):
        return replace(result, status="timeout", problem=f"{ceil(wall_s)} s of CPU time were up")
    word, _, problem = watch.verdict.decode("utf-8", "replace").partition("\n")
    if word == "passed":
        return replace(result, status="passed")
    number = -ended["program"]["exit"]
    if number > 0 and number != signal.SIGKILL:  # that one is ours, sent to every program when its tests are done
        return replace(result, status="killed", problem=f"its process was ended by {signal.Signals(number).name}")
    return replace(result, problem=problem or "the tests' process ended without a verdict")


def tier_label(greeting: dict[str, Any]) -> str:
    """`namespaces+landlock7+seccomp+rlimits+uid`: what is missing is not named."""
    layers = set(greeting["layers"])
    order = ("namespaces", "landlock", "seccomp", "rlimits", "uid")
    return (
        "+".join(f"landlock{greeting['landlock_abi']}" if n == "landlock" else n for n in order if n in layers)
        or "none"
    )


def _refusal(program: str, tests: str) -> str:
    if not tests.strip():
        return "there are no tests"
    for name, text in (("program", program), ("tests", tests)):
        if len(text.encode("utf-8", "replace")) > MAX_SOURCE_BYTES:
            return f"the {name} is longer than {MAX_SOURCE_BYTES >> 20} MiB"
    return ""


def _text_descriptor(text: str) -> int:
    descriptor = os.memfd_create("text", os.MFD_CLOEXEC)
    os.write(descriptor, text.encode("utf-8", "replace"))
    return descriptor


def _stage(paths: Sequence[Path]) -> Path | None:
    """A copy that any user can read; None for no paths."""
    if not paths:
        return None
    folder = Path(tempfile.mkdtemp(prefix="luthier-modules-"))
    for path in paths:
        shutil.copytree(path, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def _owners(entries: Sequence[os.DirEntry[str]]) -> list[int]:
    owners = []
    for entry in entries:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ended since it was listed
            owners.append(entry.stat(follow_symlinks=False).st_uid)
    return owners


def _proc_entries() -> list[os.DirEntry[str]]:
    return [entry for entry in os.scandir("/proc") if entry.name.isdigit()]


def _unused_uid() -> int:
    """A user number that nobody has: no account, no process. EvaluateError when there is none to become."""
    running = set(_owners(_proc_entries()))
    for uid in random.SystemRandom().sample(UIDS, 100):
        try:
            pwd.getpwuid(uid)
        except KeyError:
            if uid not in running:
                return uid
    raise EvaluateError(
        "started as root, and no unused user number was found to run generated code as",
        hint="start luthier as an ordinary user",
    )


def _processes_of(uid: int) -> int:
    """Threads of a user now: RLIMIT_NPROC counts them too."""
    count = 0
    for entry in _proc_entries():
        try:
            if entry.stat(follow_symlinks=False).st_uid == uid:
                count += len(os.listdir(f"{entry.path}/task"))
        except OSError:
            continue
    return count


def _folder_problem(folder: str) -> str:
    """Why the files of a run are too many or too large; '' when they are not."""
    count, size, left = 0, 0, [folder]
    while left:
        try:
            entries = list(os.scandir(left.pop()))
        except FileNotFoundError:
            continue
        except OSError as error:
            return f"its folder cannot be read ({error.strerror})"
        for entry in entries:
            count += 1
            try:
                size += entry.stat(follow_symlinks=False).st_size
            except OSError:
                continue
            if entry.is_dir(follow_symlinks=False):
                left.append(entry.path)
        if count > MAX_FILES:
            return f"it made more than {MAX_FILES} files"
        if size > MAX_FOLDER_BYTES:
            return f"it wrote more than {MAX_FOLDER_BYTES >> 20} MiB"
    return ""


def _remove(folder: str) -> None:
    """Removes the folder of a run whatever it holds: folders without rights, or nested past any recursion limit."""
    with contextlib.suppress(RecursionError):
        shutil.rmtree(folder, ignore_errors=True)
    if os.path.lexists(folder):
        subprocess.run(["chmod", "-R", "u+rwx", "--", folder], stderr=subprocess.DEVNULL, check=False)
        subprocess.run(["rm", "-rf", "--", folder], stderr=subprocess.DEVNULL, check=False)

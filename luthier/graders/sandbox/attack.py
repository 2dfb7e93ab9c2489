"""What the sandbox does to itself before it runs anything: attacks that must all fail, and fakes that must not pass.

Every attack is the body of a function in a real program; it counts as open when it ends without an exception. They are
chosen to be harmless where they succeed, because the tests of the sandbox run them without the layer that stops them.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from luthier.graders.sandbox.limits import Limits, Result

Run = Callable[..., Result]

ATTACKS = {
    "read a file outside": "open(OUTSIDE + '/secret').read()",
    "list a folder outside": "import os; os.listdir(OUTSIDE)",
    "write a file outside": "open(OUTSIDE + '/written', 'w').write('x')",
    "follow a symbolic link outside": "import os; os.symlink(OUTSIDE + '/secret', 'link'); open('link').read()",
    "link a file outside into the folder": "import os; os.link(OUTSIDE + '/secret', 'hard')",
    "move a file outside into the folder": "import os; os.rename(OUTSIDE + '/moved', 'moved')",
    "change the mode of a file outside": "import os; os.chmod(OUTSIDE + '/secret', 0o600)",
    "look at another process in /proc": "import os; open(f'/proc/{os.getppid() or 1}/cmdline', 'rb').read()",
    "read its own memory file": "open('/proc/self/mem', 'rb').read(0)",
    "open a connection": "import socket; socket.create_connection(('127.0.0.1', PORT), 1)",
    "open a datagram socket": "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "use a Unix socket outside": "import socket; socket.socket(socket.AF_UNIX).connect(OUTSIDE + '/service')",
    "fork": "import os; os.fork() or os._exit(0)",
    "start a program": "import subprocess, sys; subprocess.run(['/bin/true'], check=True)",
    "replace itself by a program": "import os; os.execv('/bin/true', ['true'])",
    "signal another process": "import os; os.kill(os.getppid() or 1, 0)",
    "have the kernel signal another process": (
        "import fcntl, os; r, w = os.pipe(); fcntl.fcntl(r, fcntl.F_SETOWN, os.getppid() or 1)"
    ),
    "use ptrace": "SYSCALL(101 if X86 else 117, 0, 0, 0, 0)",
    "change its own limits": "import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))",
    "make a namespace": "SYSCALL(272 if X86 else 97, 0x10000000)",
    "mount": "SYSCALL(165 if X86 else 40, 0, 0, 0, 0, 0)",
    "load into the kernel (bpf)": "SYSCALL(321 if X86 else 280, 99, 0, 0)",
    "use keys of the kernel": "SYSCALL(250 if X86 else 219, 0, 0xFFFFFFFD, 0)",
    "use io_uring": "SYSCALL(425, 1, ctypes.create_string_buffer(120))",
    "allocate 768 MiB": "bytearray(768 << 20)",
    "write a 64 MiB file": "open('large', 'wb').write(bytes(64 << 20))",
    "open 1000 files": "FILES = [open('/dev/null') for _ in range(1000)]",
    "read a file of root": "open(OUTSIDE + '/root-only').read()",
    "become root": "import os; os.setuid(0)",
    "be root": "import os; assert 0 in (*os.getresuid(), *os.getresgid(), *os.getgroups())",
}
PRELUDE = """
import ctypes, os, platform
OUTSIDE, PORT, X86 = {outside!r}, {port}, platform.machine() == "x86_64"
LIBC = ctypes.CDLL(None, use_errno=True)
def SYSCALL(*arguments):
    failed = LIBC.syscall(*[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]) == -1
    if failed and ctypes.get_errno() in (1, 13, 38):  # not permitted, or no such call; other errors came from inside it
        raise OSError(ctypes.get_errno(), "refused")
"""
FAKES = {
    "leave with exit code 0": "import os\nos._exit(0)",
    "raise SystemExit": "raise SystemExit(0)",
    "print the word and leave": "import os\nprint('passed', flush=True)\nos._exit(0)",
    "write the word everywhere": (
        "import os\nfor number in range(3, 64):\n"
        "    try: os.write(number, b'passed\\n')\n    except OSError: pass\nos._exit(0)"
    ),
    "an answer that equals everything": "class Any:\n    __eq__ = lambda a, b: True\ndef answer(): return Any()",
}
FAKE_TESTS = "assert answer() == 42"


@contextmanager
def outside() -> Iterator[tuple[str, int]]:
    """(folder, port): a folder of files that any user may read and write, and a listening port, to be attacked."""
    with tempfile.TemporaryDirectory(prefix="luthier-bait-") as name, socket.create_server(("127.0.0.1", 0)) as server:
        folder = Path(name)
        folder.chmod(0o777)
        for file in ("secret", "moved", "root-only"):
            (folder / file).write_text("bait")
            (folder / file).chmod(0o600 if file == "root-only" else 0o666)
        with socket.socket(socket.AF_UNIX) as service:
            service.bind(f"{name}/service")
            os.chmod(f"{name}/service", 0o777)
            service.listen()
            yield name, server.getsockname()[1]


def attack_program(names: list[str], folder: str, port: int) -> str:
    """A program with `open_doors()`: the names of those attacks that ended without an exception."""
    lines = [PRELUDE.format(outside=folder, port=port)]
    for place, name in enumerate(names):
        lines.append(f"def attack_{place}():\n    {ATTACKS[name]}\n")
    table = ", ".join(f"({name!r}, attack_{place})" for place, name in enumerate(names))
    lines.append(
        f"def open_doors():\n    found = []\n    for name, attack in [{table}]:\n        try: attack()\n"
        "        except BaseException: continue\n        found.append(name)\n    return found\n"
    )
    return "".join(lines)


def open_doors(run: Run, names: list[str] | None = None) -> list[str]:
    """Names of the attacks (of all, if none are named) that succeed in `run` (Runner.run)."""
    with outside() as (folder, port):
        program = attack_program(names or list(ATTACKS), folder, port)
        result = run(program, "found = open_doors()\nassert not found, '|'.join(found)")
    if result.passed:
        return []
    words = result.problem.partition("AssertionError: ")[2]
    return words.split("|") if words else [f"the attack itself ({result.status}: {result.problem})"]


def self_attack(run: Run) -> list[str]:
    """Everything that is not stopped: open doors, fakes that pass, a loop that goes on; and whether right is right."""
    found = open_doors(run) + [f"a fake ({name})" for name, text in FAKES.items() if run(text, FAKE_TESTS).passed]
    loop = "import signal\nsignal.pthread_sigmask(0, range(1, 65))\nwhile True: pass"
    if run(loop, FAKE_TESTS, limits=Limits(wall_s=0.3)).status != "timeout":
        found.append("an endless loop")
    if not run("def answer(): return 42", FAKE_TESTS).passed:
        found.append("nothing: a right program fails")
    return found

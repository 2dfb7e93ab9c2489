"""The sandbox under attack: every attack is stopped, and succeeds when the layers that stop it are taken away."""

import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from luthier.errors import EvaluateError
from luthier.graders.sandbox import syscalls
from luthier.graders.sandbox.attack import ATTACKS, open_doors
from luthier.graders.sandbox.box import Sandbox, SandboxPool, sandbox_tier, shared_pool
from luthier.graders.sandbox.limits import LAYERS, Limits
from luthier.graders.sandbox.runner import Runner, _owners

RIGHT, ADD_TESTS = "def add(a, b):\n    return a + b", "assert add(1, 2) == 3"
SHORT = Limits(wall_s=0.5)
IS_ROOT = os.geteuid() == 0

# attack -> the layers that each stop it on their own (as root; namespaces counts where the kernel allows them)
STOPPED_BY = {
    "read a file outside": {"landlock"},
    "list a folder outside": {"landlock"},
    "write a file outside": {"landlock"},
    "follow a symbolic link outside": {"landlock"},
    "move a file outside into the folder": {"landlock"},
    "look at another process in /proc": {"landlock"},
    "link a file outside into the folder": {"landlock", "seccomp"},
    "read its own memory file": {"landlock", "uid"},
    "read a file of root": {"landlock", "uid"},
    "change the mode of a file outside": {"seccomp", "uid"},
    "become root": {"seccomp", "uid"},
    "be root": {"uid"},
    "open a connection": {"landlock", "seccomp", "namespaces"},
    "open a datagram socket": {"seccomp"},
    "use a Unix socket outside": {"seccomp"},
    "fork": {"seccomp"},
    "start a program": {"landlock", "seccomp"},
    "replace itself by a program": {"landlock", "seccomp"},
    "signal another process": {"landlock", "seccomp", "uid"},
    "have the kernel signal another process": {"seccomp"},
    "use ptrace": {"seccomp"},
    "change its own limits": {"seccomp"},
    "make a namespace": {"seccomp"},
    "mount": {"seccomp"},
    "load into the kernel (bpf)": {"seccomp"},
    "use keys of the kernel": {"seccomp"},
    "use io_uring": {"seccomp"},
    "allocate 768 MiB": {"rlimits"},
    "write a 64 MiB file": {"rlimits"},
    "open 1000 files": {"rlimits"},
}


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox() as made:
        yield made


# the layers


@pytest.fixture(scope="module")
def doors(sandbox):
    return open_doors(sandbox.run)


def test_every_attack_of_the_corpus_has_its_layers():
    assert set(STOPPED_BY) == set(ATTACKS)


@pytest.fixture(scope="module")
def weakened():
    """Runners by the layers that they keep, each started once."""
    started = {}
    yield lambda kept: started.setdefault(kept, None) or started.update({kept: Runner(kept)}) or started[kept]
    for runner in started.values():
        runner.close()


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_stopped_and_would_not_be_without_its_layers(name, doors, weakened):
    assert name not in doors
    if not IS_ROOT and "uid" in STOPPED_BY[name]:
        pytest.skip("an ordinary user is what the uid layer makes of root")
    weak = weakened(tuple(layer for layer in LAYERS if layer not in STOPPED_BY[name]))
    assert open_doors(lambda *job: weak.run(*job, limits=Limits(wall_s=5)), [name]), f"{name}: open to nobody"


@pytest.mark.parametrize("layer", ["landlock", "seccomp", "rlimits"])
def test_a_sandbox_that_lacks_a_layer_refuses_to_run(layer):
    with pytest.raises(EvaluateError, match=f"without {layer}"):
        Sandbox(layers=[x for x in LAYERS if x != layer])


def test_a_sandbox_whose_own_attack_succeeds_refuses_to_run(monkeypatch):
    monkeypatch.setitem(ATTACKS, "harmless", "pass")
    with pytest.raises(EvaluateError, match="does not stop harmless"):
        Sandbox()


def test_a_child_that_cannot_put_on_its_layers_runs_nothing():
    with Runner([x for x in LAYERS if x != "no_new_privs"]) as weak:  # Landlock and seccomp need it
        assert not weak.run(RIGHT, ADD_TESTS).passed


def test_started_as_root_without_a_user_to_become_it_refuses(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("luthier.graders.sandbox.runner.UIDS", range(0))
    with pytest.raises((EvaluateError, ValueError)):
        Sandbox()


def test_the_tier_says_what_holds(sandbox):
    assert re.fullmatch(r"(namespaces\+)?landlock\d+\+seccomp\+rlimits(\+uid)?", sandbox.tier)
    assert sandbox.tier.endswith("+uid") == IS_ROOT
    assert sandbox.run(RIGHT, ADD_TESTS).tier == sandbox.tier == sandbox_tier()


# limits, and what must survive them

HOSTILE = {
    "sleep": ("import time\ntime.sleep(60)", "timeout", "wall time"),
    "loop with all signals blocked": (
        "import signal\nsignal.pthread_sigmask(0, range(1, 65))\nwhile True: pass", "timeout", "time were up"
    ),
    "sleep when called": ("import time\ndef add(a, b): time.sleep(60)", "timeout", "wall time"),
    "flood its output": ("while True: print('x' * 100_000)", "killed", "printed more than 16 MiB"),
    "flood its error output": ("import sys\nwhile True: sys.stderr.write('x' * 100_000)", "killed", "printed more"),
    "many files": ("i = 0\nwhile True:\n    open(f'f{i}', 'w').close(); i += 1", "killed", "more than 1000 files"),
    "many bytes": ("i = 0\nwhile True:\n    open(f'f{i}', 'wb').write(bytes(8 << 20)); i += 1", "killed", "64 MiB"),
    "folders without end": ("import os\nwhile True: os.mkdir('d', 0o700); os.chdir('d')", "killed", "folder|files"),
    "a folder that nobody may read": ("import os\nos.mkdir('d', 0)\nos._exit(1)", "failed", "ended"),
    "crash": ("import ctypes\nctypes.string_at(0)", "killed", "SIGSEGV"),
    "abort": ("import os\nos.abort()", "killed", "SIGABRT"),
    "memory": ("x = []\nwhile True: x.append(bytearray(16 << 20))", "failed", "MemoryError"),
    "memory in the answer": ("def add(a, b): return 'x' * (32 << 20)", "failed", "do not cross"),
    "an answer without end": ("def add(a, b):\n    x = []\n    x.append(x)\n    return x", "failed", "nested deeper"),
    "a huge number": ("def add(a, b): return 10 ** 100_000", "failed", "AssertionError"),
    "recursion": ("def add(a, b): return add(a, b)", "failed", "RecursionError"),
    "threads": ("import threading, time\nfor _ in range(9999): threading.Thread(target=time.sleep, args=(9,)).start()",
                "failed", "RuntimeError|MemoryError"),
    "close everything": ("import os\nos.closerange(0, 999)", "failed", "ended"),
    "a frame that is none": ("import os\nos.write(4, b'x' * 999)\ndef add(a, b): return 3", "failed", "frame"),
    "a message that is none": ("import os\nos.write(4, b'\\0\\0\\0\\x02[]')", "failed", "not a message"),
    "syntax": ("def add(a, b) return", "failed", "SyntaxError"),
    "nothing": ("", "failed", "NameError: name 'add' is not defined"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs_cost_only_themselves(sandbox, name):
    program, status, problem = HOSTILE[name]
    started = time.monotonic()
    limits = Limits(wall_s=0.5 if status == "timeout" else 5, memory_bytes=256 << 20)
    result = sandbox.run(program, ADD_TESTS, limits=limits)
    assert result.status == status and re.search(problem, result.problem), result
    assert time.monotonic() - started < limits.wall_s + 5
    assert len(result.output) <= 64 << 10 and len(result.problem) <= 500
    assert sandbox.run(RIGHT, ADD_TESTS).passed, "the sandbox goes on"


def test_cpu_time_is_a_timeout_too(sandbox):
    spin = "import threading\nfor _ in range(3): threading.Thread(target=lambda: [None for _ in iter(int, 1)]).start()"
    result = sandbox.run(spin, "import time\ntime.sleep(30)", limits=Limits(wall_s=1.0))
    assert result.status == "timeout" and result.cpu_s < 3


def test_nothing_stays_behind(sandbox, tmp_path):
    def left():
        return {name for name in os.listdir("/tmp") if name.startswith("luthier-run-")}

    before = left()
    for name in ("a folder that nobody may read", "folders without end", "many files", "sleep"):
        sandbox.run(HOSTILE[name][0], ADD_TESTS, limits=SHORT)
    assert left() <= before
    assert _running_as(sandbox) == 0


def _running_as(runner):
    """Processes of the runner's user; of an ordinary user, processes below its zygote."""
    if runner._uid is not None:
        return sum(os.stat(f"/proc/{name}").st_uid == runner._uid for name in os.listdir("/proc") if name.isdigit())
    tree = subprocess.run(["ps", "--ppid", str(runner._process.pid)], capture_output=True, text=True).stdout
    return max(0, tree.count("\n") - 2)


def test_a_grandchild_in_its_own_session_outlives_a_run_only_without_seccomp(sandbox):
    escape = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(5)\n    os._exit(0)\n" + RIGHT
    assert "PermissionError" in sandbox.run(escape, ADD_TESTS).problem
    with Runner([layer for layer in LAYERS if layer != "seccomp"]) as weak:
        assert weak.run(escape, ADD_TESTS).passed
        escaped = _running_as(weak)
        assert escaped == 1 or "namespaces" not in weak.tier
    if "namespaces" in weak.tier:
        assert _running_as(weak) == 0, "it dies with its namespace"


def test_the_end_of_the_parent_ends_everything(tmp_path):
    code = (
        "import threading, time, os\nfrom luthier.graders.sandbox.runner import Runner\nrunner = Runner()\n"
        "threading.Thread(target=runner.run, args=('while True: pass', 'x = 1')).start()\n"
        "time.sleep(0.5)\nprint(runner._process.pid, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    zygote = Path(f"/proc/{int(done.stdout)}")
    for _ in range(100):
        if not zygote.exists():
            return
        time.sleep(0.05)
    raise AssertionError("the zygote lives on")


def test_a_process_that_ends_while_owners_are_counted_is_left_out(tmp_path):
    (tmp_path / "1").mkdir()
    gone = tmp_path / "2"
    gone.mkdir()
    with os.scandir(tmp_path) as found:
        entries = list(found)
    gone.rmdir()
    assert _owners(entries) == [os.getuid()]


def test_a_zygote_that_dies_is_started_again():
    with Runner() as runner:
        assert runner.run(RIGHT, ADD_TESTS).passed
        runner._process.kill()
        runner._process.wait()
        assert runner.run(RIGHT, ADD_TESTS).status == "killed"
        assert runner.run(RIGHT, ADD_TESTS).passed
        timer = threading.Timer(0.3, lambda: runner._process.send_signal(signal.SIGKILL))
        timer.start()
        assert not runner.run("import time\ntime.sleep(9)", ADD_TESTS, limits=Limits(wall_s=2)).passed
        assert runner.run(RIGHT, ADD_TESTS).passed


def test_a_run_sees_no_other_run_and_no_environment(sandbox):
    sandbox.run("open('left', 'w').write('x')\nimport builtins\nbuiltins.left = 1\n" + RIGHT, ADD_TESTS)
    look = "import os, builtins\ndef look(): return os.listdir('.'), hasattr(builtins, 'left'), dict(os.environ)"
    assert sandbox.run(look, "assert look() == ([], False, {})").passed
    secrets = (
        "import gc\ndef find(): return [x for x in map(str, gc.get_objects()) if ''.join(['very', 'secret']) in x]"
    )
    assert sandbox.run(secrets, "hidden = 'verysecret'\nassert find() == []").passed


def test_refused_before_anything_runs(sandbox):
    assert sandbox.run(RIGHT, " \n").status == "refused"
    assert sandbox.run("#" * (2 << 20), ADD_TESTS).status == "refused"


def test_a_pool_runs_side_by_side_and_keeps_the_order():
    pool = shared_pool()
    jobs = [("import time\ntime.sleep(0.2)\n" + RIGHT, f"assert add(1, 2) == {n}", "") for n in (3, 4, 3)]
    assert [result.passed for result in pool.run_all(jobs)] == [True, False, True]
    assert SandboxPool is type(pool) and shared_pool() is pool


def test_modules_beside_the_library_can_be_imported_and_not_written(tmp_path):
    (tmp_path / "warehouse").mkdir()
    (tmp_path / "warehouse" / "__init__.py").write_text("def stock(): return 7\n")
    program = "import warehouse\ndef double(): return 2 * warehouse.stock()\ndef place(): return warehouse.__file__"
    with Sandbox(paths=[tmp_path]) as sandbox:
        assert sandbox.run(program, "import warehouse\nassert double() == 2 * warehouse.stock() == 14").passed
        writing = (
            program + "\ndef spoil():\n    try: open(warehouse.__file__, 'w')\n    except OSError: return 'stopped'"
        )
        assert sandbox.run(writing, "assert spoil() == 'stopped'").passed
    assert not sandbox._staged.exists()


# the filter, on both machines


def decide(machine, number, args=(), pid=77):
    """A BPF machine in ten lines: what the filter returns for a system call."""
    data = [number, syscalls.ARCHES[machine][1], 0, 0]
    for arg in (*args, *[0] * (6 - len(args))):
        data += [arg & 0xFFFFFFFF, arg >> 32]
    program, place, value = syscalls.filter_program(machine, pid), 0, 0
    while True:
        code, if_true, if_false, constant = program[place]
        place += 1
        if code == syscalls.RETURN:
            return constant
        if code == syscalls.LOAD:
            value = data[constant // 4]
        elif code == syscalls.AND:
            value &= constant
        else:
            holds = {
                syscalls.JUMP_EQUAL: value == constant,
                syscalls.JUMP_ABOVE: value > constant,
                syscalls.JUMP_AT_LEAST: value >= constant,
            }[code]
            place += if_true if holds else if_false


ALLOW, NO, UNKNOWN = syscalls.ALLOW, syscalls.ERRNO | 1, syscalls.ERRNO | 38
THREAD_FLAGS = 0x003D0F00


@pytest.mark.parametrize("machine, column", [("x86_64", 0), ("aarch64", 1)])
def test_the_filter_decides_alike_on_both_machines(machine, column):
    for numbers, args, expected in (
        ((0, 63), (), ALLOW),  # read
        ((257, 56), (), ALLOW),  # openat
        ((41, 198), (1, 1, 0), NO),  # socket
        ((42, 203), (), NO),  # connect
        ((59, 221), (), NO),  # execve
        ((101, 117), (), NO),  # ptrace
        ((62, 129), (77, 9), NO),  # kill
        ((90, 52), (), NO),  # chmod / fchmod
        ((319, 279), (), NO),  # memfd_create
        ((56, 220), (THREAD_FLAGS,), ALLOW),  # clone: a thread
        ((56, 220), (0x11,), NO),  # clone: a process
        ((56, 220), (THREAD_FLAGS | 0x10000000,), NO),  # clone: a user namespace
        ((435, 435), (), UNKNOWN),  # clone3
        ((460, 460), (), UNKNOWN),
        ((234, 131), (77, 77, 6), ALLOW),  # tgkill itself
        ((234, 131), (78, 78, 6), NO),
        ((72, 25), (3, 1), ALLOW),  # F_GETFD
        ((72, 25), (3, 8, 1), NO),  # F_SETOWN
        ((72, 25), (3, 10, 9), NO),  # F_SETSIG
        ((16, 29), (1, 0x5412), NO),  # TIOCSTI
        ((157, 167), (1, 0), NO),  # PR_SET_PDEATHSIG
        ((302, 261), (0, 7, 0, 4096), ALLOW),  # prlimit: reading
        ((302, 261), (0, 7, 1 << 40, 0), NO),
        ((53, 199), (1, 0x80001), ALLOW),  # socketpair, stream
        ((53, 199), (1, 2), NO),  # datagrams can be sent to a path
        ((53, 199), (2, 1), NO),
        ((44, 206), (3, 0, 0, 0, 0), ALLOW),
        ((44, 206), (3, 0, 0, 0, 1 << 33), NO),
    ):
        assert decide(machine, numbers[column], args) == expected, (machine, numbers, args)
    assert decide(machine, 0x40000000) == syscalls.KILL_PROCESS
    other = {"x86_64": "aarch64", "aarch64": "x86_64"}[machine]
    program = syscalls.filter_program(machine, 1)
    assert program[1][3] == syscalls.ARCHES[machine][1] != syscalls.ARCHES[other][1]
    assert program[2] == (syscalls.RETURN, 0, 0, syscalls.KILL_PROCESS) and max(max(p[1:3]) for p in program) < 256


@pytest.mark.parametrize("column, header", [(0, "x86_64-linux-gnu/asm/unistd_64.h"), (1, "asm-generic/unistd.h")])
def test_numbers_equal_those_of_the_kernel_headers(column, header):
    path = Path("/usr/include") / header
    if not path.exists():
        pytest.skip(f"no {path}: install linux-libc-dev")
    pattern = r"#define __NR(?:3264)?_(\w+) (\d+)"
    known = {name: int(number) for name, number in re.findall(pattern, path.read_text())}
    known |= {"newfstatat": known.get("newfstatat", known.get("fstatat", -1))}
    ours = syscalls._plain(column) | {n: v[column] for n, v in syscalls._checked(1).items()}
    assert len(ours) > 100 and {name: known.get(name) for name in ours} == ours


def test_no_table_no_sandbox(monkeypatch):
    with pytest.raises(KeyError):
        syscalls.filter_program("riscv64", 1)
    assert platform.machine() in syscalls.ARCHES and json.dumps(sandbox_tier())

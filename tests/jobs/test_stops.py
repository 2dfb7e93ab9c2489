"""Training from the command line, stopped by a real signal or by a disk that refuses, and gone on with."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from luthier.jobs.stopping import stop_flag
from luthier.store.publish import verify_folder
from tests.jobs.toy import make_texts, write_project

ROOT = Path(__file__).resolve().parents[2]
LONG = ("--set", "train.micro_batch_tokens=128", "--set", "train.num_epochs=12", "--set", "train.num_threads=1")


@pytest.fixture
def project(tmp_path, tiny_base, luthier):
    path = write_project(tmp_path / "whole", tiny_base, make_texts(40, seed=3))
    assert luthier("prepare", "-c", path).exit_code == 0
    return path


def _copy(project, name):
    """The same project, prepared, in another folder."""
    return Path(shutil.copytree(project.parent, project.parent.with_name(name))) / project.name


def _start(project, *more, more_env=None, **settings):
    command = [sys.executable, "-m", "luthier", "train", "-c", str(project), *LONG, *more]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(more_env or {})}, **settings,
    )  # fmt: skip


def _adapter(project):
    return next(project.parent.glob("runs/train-*/adapter/adapter_model.safetensors")).read_bytes()


def _log(project):
    path = next(project.parent.glob("runs/train-*/metrics.jsonl"))
    return [
        {k: v for k, v in json.loads(line).items() if k != "tokens_per_s"} for line in path.read_text().splitlines()
    ]


def test_sigterm_ends_with_75_and_the_same_command_goes_on_exactly(project, luthier):
    cut = _copy(project, "cut")
    running = _start(cut)
    while running.poll() is None and not any(path.stat().st_size for path in cut.parent.glob("runs/*.work/m*.jsonl")):
        time.sleep(0.01)
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 75 and "error: stopped after step" in said, said
    assert "hint: run the same command again" in said and "Traceback" not in said
    assert not list(cut.parent.glob("runs/train-*/adapter"))
    for path in (cut, project):
        done = luthier("train", "-c", path, *LONG)
        assert done.exit_code == 0, done.exception
    assert _adapter(cut) == _adapter(project) and _log(cut) == _log(project)


# SIGTERM where a run spends its time: (what is called there, what the terminal says).
PHASES = {
    "imports": ("import:torch", "error: stopped"),
    "preparing": ("data/dedupe.py:drop_duplicates:1", "error: stopped"),
    "loading": ("models/load.py:_read:1", "error: stopped"),
    "rehearsal": ("engine/rehearsal.py:_play:1", "error: stopped after step 0 of"),
    "a step": ("engine/step.py:backward_of:5", "error: stopped after step"),
    "a save": ("engine/checkpoint.py:_generators:2", "error: stopped after step"),
    "evaluation": ("engine/evaluation.py:_sums_of:2", "error: stopped after step"),
    "after the last step": ("adapters/peft_files.py:save_adapter:1", "error: stopped"),
}
QUICK_PHASES = ("imports",)
SHORT = (*LONG, "--set", "train.max_steps=8", "--set", "train.save_steps=2", "--set", "train.eval_steps=3")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, tiny_base, luthier):
    """A project and the same one trained without a stop."""
    path = write_project(tmp_path_factory.mktemp("undisturbed") / "whole", tiny_base, make_texts(40, seed=3))
    raw = _copy(path, "raw")
    assert luthier("train", "-c", path, *SHORT).exit_code == 0
    return raw, path


@pytest.mark.parametrize(
    "phase", [pytest.param(name, marks=() if name in QUICK_PHASES else pytest.mark.slow) for name in PHASES]
)
def test_sigterm_in_any_phase_is_told_in_a_line_and_costs_nothing(undisturbed, tmp_path, luthier, phase):
    """The same command again ends with the same weights and log; nothing torn lies about in between."""
    (raw, whole), (place, told) = undisturbed, PHASES[phase]
    cut = Path(shutil.copytree(raw.parent, tmp_path / "cut")) / raw.name
    command = [sys.executable, "-m", "tests.jobs.signalled", place, "train", "-c", str(cut), *SHORT]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    lines = [line for line in done.stderr.splitlines() if line.startswith(("error:", "hint:"))]
    assert done.returncode == 75 and len(lines) == 2, done.stderr
    assert lines[0].startswith(told) and "same command" in lines[1] and "Traceback" not in done.stderr
    left = [path for path in cut.parent.rglob("*") if path.name.startswith((".tmp-", ".lock-"))]
    assert not left and not list(cut.parent.glob("runs/train-????????????"))
    for folder in (path.parent for path in cut.parent.rglob("manifest.json")):
        assert verify_folder(folder) == []
    again = luthier("train", "-c", cut, *SHORT)
    assert again.exit_code == 0, again.exception
    assert _adapter(cut) == _adapter(whole) and _log(cut) == _log(whole)


WRAPPED = """
import os, signal, sys
from luthier import cli
from luthier.errors import BaseModelError
@cli.app.command()
def wrapped():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except Exception as error:
        raise OTHER("could not import that") from error
sys.argv = ["luthier", "wrapped"]
cli.main()
"""


@pytest.mark.parametrize("other", ["ModuleNotFoundError", "BaseModelError"])
def test_a_signal_that_others_make_another_error_of_is_still_a_stop(other):
    """As transformers does when one of its lazy imports is cut short, and a reader that calls its file unusable."""
    done = subprocess.run(
        [sys.executable, "-c", WRAPPED.replace("OTHER", other)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 75 and "error: stopped" in done.stderr and "internal" not in done.stderr


@pytest.mark.slow
def test_a_disk_that_refuses_ends_with_74_and_the_same_command_goes_on(project, luthier):
    """No file may grow beyond 20 kB, a real error of the kernel: compiled loops and the adapter's weights do not fit,
    the log does. The loops run from memory; the checkpoint that cannot be written ends the run."""
    refused, short = _copy(project, "refused"), ("--set", "train.max_steps=3")
    assert luthier("train", "-c", project, *LONG, *short).exit_code == 0
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # noqa: E731
    running = _start(refused, *short, preexec_fn=limit, more_env={"NUMBA_CACHE_DIR": str(refused.parent / "numba")})
    _, said = running.communicate(timeout=60)
    assert running.returncode == 74 and "cannot be written (" in said and "there is none before it" in said, said
    assert "hint: free some space" in said and "Traceback" not in said
    assert said.count("compiled loops cannot be kept in") == 1, said
    assert luthier("train", "-c", refused, *LONG, *short).exit_code == 0
    assert _adapter(refused) == _adapter(project) and _log(refused) == _log(project)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_ends(number):
    """The second one goes to whoever had the signal before, and so does one that comes afterwards."""

    class Ended(Exception):
        pass

    def end(*_):
        raise Ended

    mine = signal.signal(number, end)
    try:
        with pytest.raises(Ended), stop_flag() as stop:
            assert not stop()
            os.kill(os.getpid(), number)
            assert stop()
            os.kill(os.getpid(), number)
        assert signal.getsignal(number) is end
    finally:
        signal.signal(number, mine)

"""Secrets stay where they are: planted in every place where a user may put one, they turn up in no file and no output.

And nothing is unpickled, started or connected to on the way.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from luthier.cli import _crash_report
from luthier.config.load import known_keys, load_project
from luthier.config.secrets import MASK, find_secret, redact, secret_variables
from luthier.errors import ConfigError
from tests.jobs.toy import make_texts, write_project

ROOT = Path(__file__).resolve().parents[2]
CANARIES = {
    "HF_TOKEN": "hf_" + "CanaryOne" * 4,
    "WANDB_API_KEY": "c0ffee" * 6 + "cafe",  # 40 hex digits: no form of its own, known by its variable only
    "AWS_ACCESS_KEY_ID": "AKIACANARYCANARY1234"[:20],
    "AWS_SECRET_ACCESS_KEY": "wJalr/Canary+Three/bPxRfiCY0123456789AB",
    "OPENAI_API_KEY": "sk-canary-four-0123456789abcdefghij",
    "GITHUB_TOKEN": "ghp_" + "CanaryFive12" * 3,
    "MLFLOW_TRACKING_PASSWORD": "canary-six-p4ssword",
}
FORMS = [
    *CANARIES.values(),
    "https://someone:canary7pass@models.invalid/base",
    "-----BEGIN OPENSSH PRIVATE KEY-----",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJjYW5hcnkifQ.c2lnbmF0dXJlLWNhbmFyeQ",
    "glpat-canary-eight-0123456789",
    "xoxb-canary-nine-0123456789",
]


@pytest.fixture
def planted(monkeypatch):
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def project(tmp_path, tiny_base):
    return write_project(tmp_path / "project", tiny_base, make_texts(60, seed=3))


def holds_a_canary(text: str) -> list[str]:
    return [form for form in FORMS if form in text]


TEXT_KEYS = (
    "model.base", "data.system", "data.prompt", "data.completion", "data.group_by", "goal.owner", "goal.rollback_plan",
    "train.metric_for_best", "output_dir", "evaluate.metric",
)  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=range(len(FORMS)))
def test_a_secret_in_the_project_file_is_refused_with_its_line_and_never_shown(planted, project, form):
    whole = project.read_text()
    places = {
        f"{whole}\n# note: {form}\n": "",
        f'{whole}\ngoal: {{owner: "{form}"}}\n': "",
        f'{whole}\nno_such_section: {{token: "{form}"}}\n': "",
        f'{whole}\n"{form}": 3\n': "",
        f"{whole}\n\tbad yaml: '{form}\n": "",
    }
    for text in places:
        project.write_text(text)
        with pytest.raises(ConfigError) as caught:
            load_project(project)
        told = f"{caught.value} {caught.value.hint}"
        line = 1 + next(i for i, row in enumerate(text.splitlines()) if form in row)
        assert f"{project}:{line}" in told and "environment variable" in told and not holds_a_canary(told)


@pytest.mark.parametrize("key", TEXT_KEYS)
def test_a_secret_by_set_or_by_its_variable_is_refused_with_its_key(planted, project, key):
    assert key in known_keys()
    for value in (CANARIES["HF_TOKEN"], "${WANDB_API_KEY}", "prefix-${HF_TOKEN}-suffix", '"${AWS_SECRET_ACCESS_KEY}"'):
        with pytest.raises(ConfigError) as caught:
            load_project(project, [f"{key}={value}"])
        told = f"{caught.value} {caught.value.hint}"
        assert f"--set: {key}: holds what looks like a secret" in told and not holds_a_canary(told)


def test_a_secret_split_over_yaml_lines_is_found_in_its_value(planted, project):
    token = CANARIES["HF_TOKEN"]
    project.write_text(f'{project.read_text()}\ngoal:\n  owner: "{token[:12]}\\\n    {token[12:]}"\n')
    with pytest.raises(ConfigError, match=r"goal\.owner: holds what looks like a secret"):
        load_project(project)


@pytest.mark.parametrize(
    "text",
    [
        "smollm2-135m", "HuggingFaceTB/SmolLM2-135M", "5f3c1b9a0e" * 4, "Answer with JSON: {label}", "sk-short",
        "hf_ is the prefix of a token", "https://example.invalid:8080/a@b", "the token of the day is {token}",
        "ask-me-anything-about-tickets",
    ],
)  # fmt: skip
def test_what_is_no_secret_passes(text):
    assert find_secret(text) == "" and redact(text) == text


def test_variables_count_by_their_names_and_only_with_values_that_could_be_secret():
    names = {
        "MY_TOKEN": "abcd1234",
        "X_TOKEN": "short1",
        "TOKENIZERS_PARALLELISM": "false1234",
        "KEYBOARD": "qwerty123",
    }
    names |= {"GOOGLE_AUTH": "/home/me/key.json", "DB_PASSWORD": "disabled", "OPENAI_APIKEY": "0123456789"}
    assert secret_variables(names) == {"abcd1234": "MY_TOKEN", "0123456789": "OPENAI_APIKEY"}


def test_a_crash_report_masks_them(planted, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    try:
        raise RuntimeError(f"401 for https://me:{CANARIES['MLFLOW_TRACKING_PASSWORD']}@host, {' '.join(FORMS)}")
    except RuntimeError as error:
        text = _crash_report(error).read_text()
    assert not holds_a_canary(text) and MASK in text and "RuntimeError" in text


def process_arguments() -> str:
    """The arguments of every process on this machine, as anybody can read them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            found.append(path.read_bytes().decode(errors="replace"))
    return "\n".join(found)


def run_verbs(folder: Path, base: Path, wanted: list[str]) -> tuple[str, set[tuple[str, str, str]]]:
    """Runs verbs with canaries in the environment and a token file: (all output, events of tests/jobs/audited.py)."""
    project = write_project(folder / "project", base, make_texts(60, seed=3))
    home, scratch = folder / "home", folder / "scratch"
    for made in (home / "hf", scratch):
        made.mkdir(parents=True)
    (home / "hf/token").write_text(CANARIES["HF_TOKEN"])
    env = os.environ | CANARIES | {"HOME": str(home), "HF_HOME": str(home / "hf"), "TMPDIR": str(scratch)}
    env |= {"PYTHONPATH": str(ROOT), "LUTHIER_CACHE": str(folder / "cache")}
    quick = ("-c", project, "--set", "train.max_steps=2", "--set", "train.trackers=[tensorboard]")
    verbs = {
        "run": quick,
        "verify": (project.parent / "runs",),
        "config show": quick,
        "plan": (*quick, "--json"),
        "mask": quick,
        "train": (*quick, "--set", f"data.system={CANARIES['OPENAI_API_KEY']}"),
        "evaluate": (*quick, "--model", FORMS[7]),
        "chat": (*quick, "-m", "red", "--max-new-tokens", "2"),
        "decide": ("--from", folder / CANARIES["GITHUB_TOKEN"]),
        "init": (project.parent / "rows.csv", "-o", scratch / "new.yaml"),
        "doctor": (),
    }
    output, events = "", set()
    for verb in wanted:
        command = [sys.executable, "-m", "tests.jobs.audited", folder / "events", *verb.split(), *verbs[verb]]
        typed = [str(part) for part in command]
        with open(folder / "said", "w+") as said:
            running = subprocess.Popen(typed, env=env, stdout=said, stderr=subprocess.STDOUT, cwd=ROOT)
            while running.poll() is None:
                assert holds_a_canary(" ".join(typed)) or not holds_a_canary(process_arguments())
                time.sleep(0.05)
            said.seek(0)
            output += f"== {verb}: {running.returncode}\n{said.read()}"
        events |= {tuple(event) for event in json.loads((folder / "events").read_text())}
    (home / "hf/token").unlink()
    return output, events


def check_files(folder: Path) -> set[str]:
    """Names of all files in `folder`, none of which holds a canary."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        data = path.read_bytes()
        assert not [form for form in FORMS if form.encode() in data], path
    return {path.name for path in files}


def check_events(events: set[tuple[str, str, str]]) -> None:
    """Allowed by name: numba reading the machine code that it kept itself, llama.cpp's own loopback interface, and the
    attacks that the sandbox makes on itself."""
    strange = []
    for event, arguments, stack in events:
        numba = event == "pickle.find_class" and "/numba/core/caching.py" in stack
        loopback = event == "socket.connect" and "'127.0.0.1'" in arguments and "/ship/llama_cpp.py" in stack
        bait = not event.startswith("socket.") or "'127.0.0.1'" in arguments or "/luthier-bait-" in arguments
        if not (numba or loopback or (bait and "/luthier/graders/sandbox/" in stack)):
            strange.append((event, arguments, stack))
    assert not strange


def test_a_whole_run_leaks_no_canary_unpickles_nothing_and_starts_nothing(tmp_path, tiny_base):
    output, events = run_verbs(tmp_path, tiny_base, ["run"])
    assert "== run: 1" in output and "Traceback" not in output and not holds_a_canary(output), output
    names = check_files(tmp_path)
    assert {"manifest.json", "metrics.jsonl", "report.html", "verdict.json", "adapter_config.json"} <= names
    assert any("tfevents" in name for name in names) and any(name.endswith(".gguf") for name in names)
    check_events(events)


@pytest.mark.slow
def test_nor_does_any_other_verb(tmp_path, tiny_base):
    verbs = ["run", "verify", "config show", "plan", "mask", "train", "evaluate", "chat", "decide", "init", "doctor"]
    output, events = run_verbs(tmp_path, tiny_base, verbs)
    assert "== train: 2" in output and "looks like a secret" in output and "== verify: 0" in output, output
    assert not holds_a_canary(output) and "internal:" not in output
    assert "new.yaml" in check_files(tmp_path)
    check_events(events)

"""The small verbs, and what may lie in their way: torn outputs, two runs at once, folders and terminals that refuse."""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from luthier.config.load import known_keys, load_project
from luthier.config.project import ProjectSpec
from luthier.errors import ArtifactError, ConfigError, DataError, EvaluateError
from luthier.jobs.config import _meanings
from luthier.jobs.evaluate import _tune_of_folder
from tests.jobs.toy import make_texts, write_csv, write_project

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("--set", "train.max_steps=1", "--set", "ship.formats=[]", "--set", "evaluate.max_new_tokens=1")


@pytest.fixture
def project(tmp_path, tiny_base):
    return write_project(tmp_path, tiny_base, make_texts(60, seed=3))


@pytest.fixture
def text_project(tmp_path, tiny_base):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": words}) + "\n" for words, _ in make_texts(40, 4)))
    path = tmp_path / "text.yaml"
    path.write_text(
        f'model: {{base: "{tiny_base}"}}\ndata: {{train: [a.jsonl]}}\ntrain: {{micro_batch_tokens: 1024}}\n'
    )
    return path


AWKWARD = (
    f"data.system='{'x, y: z ' * 60}'",
    'data.system="two\\nlines # and {braces}"',
    "goal.owner='2e-5'",
    "goal.owner='no'",
    "goal.rollback_plan='über: \"all\" # that'",
    "goal.success_criteria=['1e3', 'null', 'a, b', '[c]', '']",
    "data.group_by='~'",
    "goal.owner='$${HOME} $x ${HOME}'",
)


@pytest.mark.parametrize("override", AWKWARD, ids=[str(i) for i in range(len(AWKWARD))])
def test_config_show_loads_to_the_same_spec(project, luthier, override):
    shown = luthier("config", "show", "-c", project, "--set", override)
    assert shown.exit_code == 0 and "# --set" in shown.output
    again = project.with_name("again.yaml")
    again.write_text(shown.output)
    assert load_project(again).spec == load_project(project, [override]).spec


def test_config_keys_lists_every_key_and_every_meaning(luthier):
    shown = luthier("config", "keys")
    assert shown.exit_code == 0
    listed = {line.split()[0] for line in shown.output.splitlines() if line.strip()}
    leaves = [k for k in known_keys() if not any(other.startswith(f"{k}.") for other in known_keys())]
    assert set(leaves) <= listed and "evaluate.gates.format" in listed
    assert re.search(r"ship\.thresholds\.int4\.kl +0\.1 ", shown.output) and shown.output.count(" required ") == 3
    assert "None" not in shown.output and "()" not in shown.output, "defaults stand as YAML"
    flat = " ".join(shown.output.split())
    for section in ProjectSpec.model_fields.values():
        for meaning in _meanings(section.annotation).values() if hasattr(section.annotation, "model_fields") else ():
            assert meaning.split(";")[0].split()[0] in flat
            assert "\n" not in meaning and "  " not in meaning


def test_names_in_a_table_stay_whole_on_a_narrow_terminal():
    narrow = [
        sys.executable,
        "-c",
        "from luthier.jobs import console, config\nconsole.console.width = 60\nconfig.keys()",
    ]
    shown = subprocess.run(narrow, capture_output=True, text=True, cwd=ROOT).stdout
    assert "evaluate.gates.format.max_failure_rate " in shown


def test_doctor_is_content_with_this_machine(luthier):
    result = luthier("doctor")
    assert result.exit_code == 0 and "torch" in result.output, result.output


def test_a_torn_or_foreign_manifest_means_that_the_stage_is_built_again(project, luthier):
    assert luthier("prepare", "-c", project).exit_code == 0
    manifest = next(project.parent.glob("runs/prepare-*")) / "manifest.json"
    whole = manifest.read_text()
    for broken in (whole[:100], "", "[]", '{"files": []}', '{"files": [{"x": 1}], "facts": {}}'):
        manifest.write_text(broken)
        again = luthier("prepare", "-c", project)
        assert again.exit_code == 0 and "unchanged" not in again.output, again.exception
        assert json.loads(manifest.read_text())["files"]
    rows = manifest.parent / "train.jsonl"
    damaged = bytearray(whole_rows := rows.read_bytes())
    damaged[len(damaged) // 2] ^= 1  # same size, other content
    rows.write_bytes(damaged)
    again = luthier("prepare", "-c", project)
    assert "is built again" in again.output and "train.jsonl: content differs" in again.output, again.output
    assert rows.read_bytes() == whole_rows
    (manifest.parent / "train.jsonl").unlink()
    assert "unchanged" not in luthier("prepare", "-c", project).output
    assert "unchanged" in luthier("prepare", "-c", project).output


def test_two_trainings_do_not_share_a_folder(project, luthier):
    quick = ("--set", "train.max_steps=1")
    assert luthier("train", "-c", project, *quick).exit_code == 0
    folder = next(project.parent.glob("runs/train-*"))
    (folder / "manifest.json").unlink()
    lock = folder.with_name(f".lock-{folder.name}")
    with open(lock, "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        refused = luthier("train", "-c", project, *quick)
        assert isinstance(refused.exception, ArtifactError) and "another luthier" in str(refused.exception)
    assert luthier("train", "-c", project, *quick).exit_code == 0, "a lock that nobody holds is no obstacle"
    assert not lock.exists()


def test_a_preparation_waits_for_another_one_of_the_same_data(project, luthier):
    """Two runs that differ in their training settings share the prepared data; the second waits instead of failing."""
    assert luthier("prepare", "-c", project).exit_code == 0
    folder = next(project.parent.glob("runs/prepare-*"))
    (folder / "manifest.json").unlink()
    with open(folder.with_name(f".lock-{folder.name}"), "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        free = threading.Timer(0.3, lambda: fcntl.flock(other, fcntl.LOCK_UN))
        free.start()
        waited = luthier("prepare", "-c", project)
        free.join()
    assert waited.exit_code == 0 and "waiting until it is done" in " ".join(waited.output.split())


def test_an_output_folder_that_cannot_be_made_is_a_matter_of_configuration(project, luthier):
    for folder in ("rows.csv", "rows.csv/sub"):
        refused = luthier("prepare", "-c", project, "--set", f"output_dir={folder}")
        assert isinstance(refused.exception, ConfigError) and "output_dir" in refused.exception.hint


FULL = {
    "an error of Python": "OSError(errno.ENOSPC, 'No space left on device', 'runs/x')",
    "safetensors, in words": "RuntimeError('Error while serializing: I/O error: disk (os error 28)')",
    "numpy, in words": "OSError('16384 requested and 512 written')",
}


@pytest.mark.parametrize("error", FULL.values(), ids=FULL)
def test_a_full_disk_is_not_called_a_bug(error):
    code = (
        "import errno, sys, luthier.cli as cli\n"
        f"def full(name): raise {error}\n"
        "cli._job = full\nsys.argv = ['luthier', 'doctor']\ncli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 74 and ": No space left" in done.stderr and "internal" not in done.stderr
    assert ("runs/x: " if "runs/x" in error else "writing: ") in done.stderr


def test_a_terminal_without_the_letter_does_not_end_the_run(tmp_path):
    (tmp_path / "ü.csv").write_text("text,label\n" + "".join(f"{t},{a}\n" for t, a in make_texts(30, 5)))
    done = subprocess.run(
        [sys.executable, "-m", "luthier", "init", "ü.csv"], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 0 and "\\xfc.csv" in done.stdout, done.stderr


def test_plain_text_is_built_but_never_trained_for_a_verdict_that_cannot_come(text_project, luthier):
    for verb in ("run", "evaluate"):
        refused = luthier(verb, "-c", text_project, *QUICK)
        assert isinstance(refused.exception, EvaluateError) and "plain text" in str(refused.exception)
    assert not list(text_project.parent.glob("runs/train-*")), "refused before training"
    built = luthier("build", "-c", text_project, *QUICK)
    assert built.exit_code == 0 and "equal to what was trained" in built.output, built.exception


def test_no_test_rows_are_refused_before_training(project, luthier):
    refused = luthier("run", "-c", project, *QUICK, "--set", "data.split={train: 0.8, dev: 0.2, test: 0}")
    assert isinstance(refused.exception, EvaluateError) and "no row" in str(refused.exception)
    assert not list(project.parent.glob("runs/train-*"))


def test_flags_that_contradict_each_other_are_usage_and_come_first(project, tiny_base, luthier):
    for verb in (
        ("evaluate", "--adapter", tiny_base, "--model", tiny_base),
        ("evaluate", "--model", "none"),
        ("chat", "--base", "--model", tiny_base),
        ("chat", "--base", "--message", " "),
    ):
        refused = luthier(*verb, "-c", project)
        assert isinstance(refused.exception, ConfigError), verb
    assert not (project.parent / "runs").exists(), "nothing was done before"


def test_a_column_to_stratify_or_group_by_must_exist(project, luthier):
    for key in ("stratify_by", "group_by"):
        refused = luthier("prepare", "-c", project, "--set", f"data.{key}=labl")
        assert isinstance(refused.exception, DataError) and f"no column 'labl' of data.{key}" in str(refused.exception)
    assert luthier("prepare", "-c", project, "--set", "data.stratify_by=label").exit_code == 0


WORDS = [
    ("data.train=", "expected a list"),
    ("data=3", "expected a section"),
    ("data.prompt={text}", "quote it"),
    ("output_dir=", "expected a path"),
    ("data.format=alpaca", "format alpaca would not be used"),
]


@pytest.mark.parametrize(("override", "words"), WORDS, ids=[w[0] for w in WORDS])
def test_wrong_types_are_told_in_the_words_of_the_project_file(project, luthier, override, words):
    refused = luthier("prepare", "-c", project, "--set", override)
    assert isinstance(refused.exception, ConfigError) and words in str(refused.exception)


def test_changed_data_is_prepared_again(project, luthier):
    assert luthier("prepare", "-c", project).exit_code == 0
    write_csv(project.parent / "rows.csv", make_texts(70, seed=6))
    again = luthier("prepare", "-c", project)
    assert "unchanged" not in again.output and "70 rows read" in again.output
    assert len(list(project.parent.glob("runs/prepare-*"))) == 2


def test_chat_speaks_with_the_build_of_the_settings_as_they_are(project, luthier):
    nothing = luthier("chat", "-c", project, "-m", "hello")
    assert isinstance(nothing.exception, ArtifactError) and "nothing is built yet" in str(nothing.exception)
    assert "--base" in nothing.exception.hint and "--model" not in nothing.exception.hint
    assert not (project.parent / "runs").exists(), "asked, not built"
    assert luthier("build", "-c", project, *QUICK).exit_code == 0
    asked = ("chat", "-c", project, "-m", "hello", "--max-new-tokens", "2")
    other = luthier(*asked)
    assert isinstance(other.exception, ArtifactError) and "merged for the newest of other" in other.exception.hint
    answered = luthier(*asked, *QUICK)
    assert answered.exit_code == 0 and "prepare" not in answered.output and "reusing" not in answered.output
    assert luthier("build", "-c", project, *QUICK, "--set", "train.learning_rate=1.0").exit_code == 0
    assert luthier(*asked, *QUICK).output == answered.output, "a newer build of other settings is not taken"


def test_an_adapter_is_judged_again_when_its_settings_change(project, tiny_base, luthier):
    assert luthier("build", "-c", project, *QUICK).exit_code == 0
    adapter = next(project.parent.glob("runs/train-*")) / "adapter"
    copy = project.parent / "copy"
    shutil.copytree(adapter, copy)
    assert _tune_of_folder(copy, None).digest == _tune_of_folder(adapter, None).digest
    settings = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(settings | {"lora_alpha": 99}))
    assert _tune_of_folder(copy, None).digest != _tune_of_folder(adapter, None).digest
    refused = luthier("evaluate", "-c", project, "--adapter", tiny_base)
    assert isinstance(refused.exception, ConfigError) and "not a PEFT adapter" in str(refused.exception)


def test_decide_refuses_an_output_that_cannot_be_written(project, luthier):
    assert luthier("run", "-c", project, *QUICK).exit_code in (10, 11, 12)
    samples = next(project.parent.glob("runs/evaluate-*")) / "samples.jsonl"
    refused = luthier("decide", "--from", samples, "-o", project / "verdict.json")
    assert isinstance(refused.exception, ConfigError), refused.exception


def test_the_split_is_verified_frozen_compared_and_told_apart(project, luthier, tmp_path):
    assert luthier("prepare", "-c", project).exit_code == 0
    (first,) = (tmp_path / "runs").glob("prepare-*")
    assert "<mark>" in (first / "report.html").read_text()
    held = luthier("verify-split", first)
    assert held.exit_code == 0 and "holds: nothing crosses" in held.output
    traffic = tmp_path / "traffic.jsonl"
    rows = [json.dumps({"prompt": f"{i} Could you PLEASE look again at parcel {i}? It broke!"}) for i in range(60)]
    traffic.write_text("\n".join(rows) + "\n")
    assert luthier("data", "compare", traffic, "-c", project).exit_code == 0
    refused = luthier("data", "compare", traffic, "-c", project, "--policy", "refuse", "-o", tmp_path / "page.html")
    assert refused.exit_code == 1 and "refused" in refused.output and "far" in (tmp_path / "page.html").read_text()
    other = ("prepare", "-c", project, "--set", "data.split_seed=7", "--set")
    assert luthier(*other, f"output_dir={tmp_path / 'other'}").exit_code == 0
    (second,) = (tmp_path / "other").glob("prepare-*")
    told = luthier("data", "diff", first, second)
    assert told.exit_code == 1 and "now trained on" in told.output
    assert luthier("data", "diff", first, first).exit_code == 0
    assert luthier("data", "freeze", "-c", project, "--name", "v1").exit_code == 0
    assert luthier(*other, f"output_dir={tmp_path / 'third'}").exit_code == 0
    (third,) = (tmp_path / "third").glob("prepare-*")
    sealed = {json.loads(line)["id"] for line in (first / "test.jsonl").read_text().splitlines()}
    trained = {json.loads(line)["id"] for line in (third / "train.jsonl").read_text().splitlines()}
    assert not sealed & trained
    lines = (first / "test.jsonl").read_text().splitlines()
    with open(first / "train.jsonl", "a") as file:
        file.write(lines[0] + "\n")
    broken = luthier("verify-split", first)
    assert broken.exit_code == 1 and "does NOT hold" in broken.output and "same row" in broken.output


NO_PLACE = {
    "a file as a folder": ("rows.jsonl/out.jsonl", 74, "rows.jsonl: File exists", "other folders"),
    "a loop": ("loop/out.jsonl", 74, "loop: ", "other folders"),
    "too long": ("x" * 300 + ".jsonl", 74, "File name too long", "shorter name"),
    "no disk": ("/proc/out.jsonl", 74, "Permission denied", "check the path"),
    "a pipe": ("pipe.jsonl", 2, "is a device or a pipe", "name of a file"),
}


@pytest.mark.parametrize(("target", "code", "said", "hint"), NO_PLACE.values(), ids=NO_PLACE)
def test_a_place_that_holds_no_file_is_named_and_kept(tmp_path, target, code, said, hint):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe.jsonl")
    command = [sys.executable, "-m", "luthier", "convert", "rows.jsonl", target, "--to", "messages", "--force"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == code and said in done.stderr and hint in done.stderr, done.stderr
    assert (tmp_path / "pipe.jsonl").is_fifo() and (tmp_path / "loop").is_symlink()

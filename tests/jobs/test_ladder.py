"""`luthier run --pilot` and `luthier ladder` end to end: small runs beside the project's, judged on dev rows alone."""

import json
import re
import subprocess
import sys

import pytest

from luthier.data.stored import read_rows
from luthier.errors import ConfigError, DataError
from luthier.store.publish import read_manifest
from tests.jobs.test_practice import ONLINE, settings
from tests.jobs.toy import make_texts, write_project

FAST = settings("train.learning_rate=3e-3")


def words(result) -> str:
    assert result.exit_code == 0, (result.output, result.exception)
    return " ".join(result.output.split())


def facts_of(folder, stage):
    return [read_manifest(path)["facts"] for path in sorted(folder.glob(f"{stage}-????????????"))]


def test_a_pilot_is_one_small_run_beside_the_project(toy_base, tmp_path, luthier):
    project = write_project(tmp_path / "p", toy_base, make_texts(300, seed=7))
    asked = settings("adapter.lora_r=32", "adapter.lora_alpha=64", "data.limit_dev_rows=20")
    said = words(luthier("run", "--pilot", "-c", project, *FAST, *asked))
    runs, small = project.parent / "runs", project.parent / "runs-pilot"
    assert not runs.exists() and not list(project.parent.glob("*.ledger.jsonl")), "no test row was looked at"
    (train,) = small.glob("train-????????????")
    inputs = read_manifest(train)["inputs"]
    assert inputs["adapter"]["lora_r"] == 8 and inputs["adapter"]["lora_alpha"] == 16
    assert inputs["train"]["num_epochs"] == 1 and not list(small.glob("build-*"))
    assert "20 dev rows" in said and "base 0.0% (0.0 to 16.1) tuned " in said
    assert "the tune (150 rows, rank 8, 1 epoch) beats the untuned base" in said
    (prepared,) = small.glob("prepare-????????????")
    dev = {row.id for row in read_rows(prepared, "dev")}
    for path in small.glob("answers-*/answers.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert {line["id"] for line in lines} == dev and len(lines) == 20
    assert "every link holds" in words(luthier("verify", small))
    again = words(luthier("run", "--pilot", "-c", project, *FAST, *asked))
    assert again.count("unchanged, reusing") == 4, "prepare, train, the tune's answers, the base's"


def test_a_ladder_climbs_says_what_helps_and_ends_in_a_diff(toy_base, tmp_path, luthier):
    """Each rung is a real run; the same command again runs none of them."""
    project = write_project(tmp_path / "p", toy_base, make_texts(400, seed=7))
    asked = settings("train.learning_rate=2e-3", "train.num_epochs=1", "adapter.lora_r=4", "adapter.lora_alpha=8")
    said = words(luthier("ladder", "-c", project, *asked))
    small = project.parent / "runs-pilot"
    rungs = re.findall(r"rung (\d+) rows, rank (\d+), (\d) epoch", said)
    assert rungs[:4] == [("50", "8", "1"), ("100", "8", "1"), ("200", "8", "1"), ("200", "16", "1")]
    assert rungs[-1][2] in "24" and len(set(rungs)) == len(rungs), "none is run twice"
    assert len(facts_of(small, "train")) == len(rungs) and not (project.parent / "runs").exists()
    assert re.search(
        r"more rows still help: \+\d+\.\d points \(95% \+\d+\.\d to \+\d+\.\d\) from 100 to 200 rows", said
    )
    assert re.search(r"proposed: .*adapter: - lora_r: 4 \+ lora_r: (8|16|32) - lora_alpha: 8.0 \+ lora_alpha: ", said)
    page = (small / "ladder.html").read_text()
    assert "<svg" in page and "more rows still help" in page and "Learning curve" in page
    assert not list(project.parent.glob("*.ledger.jsonl"))
    again = words(luthier("ladder", "-c", project, *asked))
    assert "tokenising" not in again and "answering" not in again and len(facts_of(small, "train")) == len(rungs)
    assert (small / "ladder.html").read_text() == page


@pytest.mark.slow
def test_a_ladder_that_is_stopped_goes_on_where_it_was(toy_base, tmp_path):
    """Finished rungs stand, the one in the middle goes on from its checkpoint."""
    project = write_project(tmp_path / "p", toy_base, make_texts(400, seed=7))
    command = ["ladder", "-c", str(project), *FAST, *settings("train.save_steps=1")]
    cut = [sys.executable, "-m", "tests.jobs.signalled", "engine/step.py:batch_sums:18:SIGINT", *command]
    first = subprocess.run(cut, capture_output=True, text=True)
    assert first.returncode == 75, first.stderr
    small = project.parent / "runs-pilot"
    stood = {path: path.stat().st_mtime_ns for path in small.glob("*-????????????/manifest.json")}
    assert len(stood) >= 5, "two preparations, a rung, its answers and the base's"
    (cut_short,) = small.glob("train-*.work")
    assert list(cut_short.glob("checkpoints/step-*")), "saved where it was stopped"
    done = subprocess.run([sys.executable, "-m", "luthier", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(path.stat().st_mtime_ns == when for path, when in stood.items())
    lines = (cut_short.with_suffix("") / "metrics.jsonl").read_text().splitlines()
    steps = [line["step"] for line in map(json.loads, lines) if line["kind"] == "train"]
    assert steps == sorted(set(steps)) and "proposed:" in done.stdout


@pytest.mark.parametrize(
    ("verb", "rows", "asked", "message", "hint"),
    [
        (("run", "--pilot"), 60, ONLINE, "its answers come from the model itself", "loss.kind: sft"),
        (("ladder",), 60, ONLINE, "its answers come from the model itself", "train.max_steps"),
        (("ladder",), 60, ("loss.kind=regress",), "score head", "luthier train"),
        (
            ("run", "--pilot"), 60,
            ("data.split={train: 0.5, dev: 0, test: 0.5}", "data.allow_no_dev=true"), "no dev split", "dev: 0.1",
        ),
        (("ladder",), 60, (), "30 training rows: a quarter of them", "luthier run --pilot"),
        (("ladder",), 150, (), "dev rows are fewer than the 30", "data.split.dev"),
        (("ladder",), 400, ("train.max_steps=5",), "end every rung at the same step", "train.max_steps=null"),
        (("run", "--pilot"), 60, ("data.limit_dev_rows=0",), "limit_dev_rows", ""),
    ],
)  # fmt: skip
def test_what_has_no_rungs_is_refused_by_name(tiny_base, tmp_path, luthier, verb, rows, asked, message, hint):
    project = write_project(tmp_path / "p", tiny_base, make_texts(rows, seed=3))
    error = luthier(*verb, "-c", project, *settings(*asked)).exception
    assert isinstance(error, (ConfigError, DataError)) and message in str(error) and hint in error.hint
    assert not list(project.parent.glob("runs*/train-*")), "before anything is trained"


def test_plain_text_is_refused(tiny_base, tmp_path, luthier):
    project = write_project(tmp_path / "p", tiny_base, make_texts(60, seed=3))
    text = project.read_text().replace("  format: columns\n", "").replace("rows.csv", "rows.txt")
    project.write_text(
        "\n".join(line for line in text.splitlines() if 'prompt: "' not in line and "ompletion" not in line)
    )
    (project.parent / "rows.txt").write_text("\n".join(f"{text} and so on" for text, _ in make_texts(60, seed=3)))
    error = luthier("run", "--pilot", "-c", project).exception
    assert isinstance(error, DataError) and "plain text without answers" in str(error) and "luthier train" in error.hint

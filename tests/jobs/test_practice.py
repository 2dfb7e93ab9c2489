"""Training practice through the CLI: what is on record and on the console, and what is refused before a base loads."""

import json

import pytest

from luthier.errors import ConfigError
from luthier.store.publish import read_manifest
from tests.jobs.toy import make_texts, write_project

ONLINE = ("loss.kind=grpo", "rollouts.rewards={exact_match: 1.0}")
QUICK = ("--set", "train.max_steps=4", "--set", "train.micro_batch_tokens=256")


@pytest.fixture
def project(tmp_path, tiny_base):
    return write_project(tmp_path, tiny_base, make_texts(60, seed=3))


def settings(*pairs: str) -> list[str]:
    return [part for pair in pairs for part in ("--set", pair)]


def trained(project):
    (folder,) = (project.parent / "runs").glob("train-????????????")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return read_manifest(folder)["facts"], lines


def test_schedule_rates_and_averages(project, luthier):
    asked = settings(
        "train.lr_scheduler=wsd", "train.lr_decay_ratio=0.5", "train.layer_lr_decay=0.8", "train.ema_decay=0.9",
        "train.ema_keep=false", "train.average_checkpoints=2", "train.eval_steps=1", "train.warmup_ratio=0.25",
    )  # fmt: skip
    result = luthier("train", "-c", project, *QUICK, *asked)
    assert result.exit_code == 0, (result.output, result.exception)
    facts, lines = trained(project)
    rates = [line["learning_rate"] for line in lines if line["kind"] == "train"]
    assert rates == pytest.approx([5e-3, 5e-3, 5e-3, 5e-3 * (1 - 0.5**0.5)])
    assert all("ema_loss" in line for line in lines if line["kind"] == "dev")
    assert len(facts["average"]["steps"]) == 2 and "mean of 2 checkpoints (steps " in " ".join(result.output.split())
    if facts["average"]["kept"]:
        assert facts["dev_loss"] == pytest.approx(facts["average"]["figures"]["loss"], abs=1e-5)


def test_the_noise_scale_is_told_where_steps_have_parts(project, luthier):
    """And not where a step is one micro-batch, or when it is switched off."""
    parts = settings("train.gradient_accumulation_steps=3", "train.micro_batch_tokens=128", "train.num_epochs=6")
    result = luthier("train", "-c", project, *parts)
    assert result.exit_code == 0, (result.output, result.exception)
    facts, lines = trained(project)
    assert facts["noise_scale"] == [line["noise_scale"] for line in lines if "noise_scale" in line][-1] > 0
    told = " ".join(result.output.split())
    step = f"{facts['units_per_step']:,.0f}"
    assert f"gradient noise scale: {facts['noise_scale']:,.0f} trained tokens, a step holds {step}" in told
    for other in (("train.noise_scale=false",), ("train.gradient_accumulation_steps=1",)):
        again = luthier("train", "-c", project, *parts, *settings(*other, "train.max_steps=2"))
        assert again.exit_code == 0 and "noise scale" not in again.output


def test_the_gap_and_the_curriculum(project, luthier):
    """The gap is in the log and on the console, and ends a run by its own name; short rows come first."""
    asked = settings(
        "train.gap_rows=16", "train.eval_steps=2", "train.curriculum=length", "train.micro_batch_tokens=128"
    )
    result = luthier("train", "-c", project, *asked, *settings("train.max_steps=4"))
    assert result.exit_code == 0, (result.output, result.exception)
    facts, lines = trained(project)
    dev = [line for line in lines if line["kind"] == "dev"]
    assert all(line["gap"] == pytest.approx(line["loss"] - line["train_loss"]) for line in dev)
    assert f"generalisation gap at step {facts['best_step']}: " in " ".join(result.output.split())
    tokens = [line["num_tokens"] / line["num_trained_tokens"] for line in lines if line["kind"] == "train"]
    assert tokens == sorted(tokens), "longer rows have more prompt to an answer"
    stopped = luthier(
        "train", "-c", project, *asked, *settings("train.max_gap=0.000001", "train.num_epochs=40", "output_dir=other")
    )
    said = " ".join(stopped.output.split())
    assert stopped.exit_code == 0 and "above train.max_gap: stopped" in said


def test_the_advisory_gate_is_said_and_blocks_nothing(toy_base, tmp_path, luthier):
    """With and without it the verdict is the same; decide finds it again from the samples alone."""
    project = write_project(tmp_path, toy_base, make_texts(200, seed=7))
    asked = settings("evaluate.min_pairs=20", "train.gap_rows=8")
    plain = luthier("run", "-c", project, *asked)
    gated = luthier("run", "-c", project, *asked, *settings("evaluate.gates.generalisation={margin: 1e-3}"))
    verdicts = [json.loads(path.read_text()) for path in sorted(project.parent.glob("runs/evaluate-*/verdict.json"))]
    (without,) = [one for one in verdicts if not one["advisory"]]
    (found,) = [one for one in verdicts if one["advisory"]]
    assert plain.exit_code == gated.exit_code and without["verdict"] == found["verdict"]
    assert "generalisation" in without["not_run"] and "generalisation" not in found["not_run"]
    (gate,) = found["advisory"]
    assert gate["status"] in ("FAIL", "INCONCLUSIVE", "PASS") and gate["low"] <= gate["delta"] <= gate["high"]
    assert f"generalisation {gate['status']}: advisory" in " ".join(gated.output.split())
    folder = next(
        p.parent for p in project.parent.glob("runs/evaluate-*/verdict.json") if '"generalisation",' in p.read_text()
    )
    report = (folder / "report.html").read_text()
    assert "Generalisation gap" in report and "rows trained on, judged as the dev rows are" in report
    assert " generalisation: advisory: test answers cost " in report
    again = luthier("decide", "--from", folder / "samples.jsonl", "-o", tmp_path / "again.json")
    assert again.exit_code == gated.exit_code
    assert (tmp_path / "again.json").read_text() == (folder / "verdict.json").read_text()


@pytest.mark.slow
def test_lr_probe_proposes_a_diff_and_leaves_no_stage(toy_base, tmp_path, luthier):
    project = write_project(tmp_path, toy_base, make_texts(60, seed=3))
    page = tmp_path / "rates.html"
    result = luthier("lr-probe", "-c", project, "--steps", "30", "-o", page, *settings("train.micro_batch_tokens=128"))
    assert result.exit_code == 0, (result.output, result.exception)
    said = " ".join(result.output.split())
    assert "everything put back" in said and "proposed: " in said and "- learning_rate: 0.005" in said
    assert "<svg" in page.read_text() and "proposed" in page.read_text()
    assert not list((project.parent / "runs").glob("train-*"))
    refused = luthier("lr-probe", "-c", project, "--from", "1", "--to", "0.1")
    assert isinstance(refused.exception, ConfigError) and "no range" in str(refused.exception)
    before = project.read_text()
    refused = luthier("lr-probe", "-c", project, "-o", project)
    assert isinstance(refused.exception, ConfigError) and refused.exception.hint.endswith("luthier.html")
    assert project.read_text() == before
    refused = luthier("lr-probe", "-c", project, *settings(*ONLINE))
    assert isinstance(refused.exception, ConfigError) and "whatever it learns" in str(refused.exception)
    low = luthier("lr-probe", "-c", project, "--from", "1e-12", "--to", "1e-11", "--steps", "10")
    assert low.exit_code == 0 and "no rate is proposed" in low.output


@pytest.mark.parametrize(
    ("asked", "words", "hint"),
    [
        (("train.metric_for_best=accuracy",), "no dev row is answered while training", "train.eval_task_rows"),
        (("train.metric_for_best=reward_accuracy",), "is not computed in this project", "loss, accuracy"),
        (("adapter.method=adalora", "train.ema_decay=0.9"), "adalora takes ranks away", "train.ema_decay: null"),
        (("adapter.method=adalora", "train.average_checkpoints=2"), "adalora takes ranks away", "adapter.method: lora"),
        (("train.max_gap=0.5",), "needs gap_rows > 0", ""),
        (("train.curriculum=hardest",), "'none' or 'length'", ""),
        ((*ONLINE, "train.curriculum=length"), "have no length yet", "drop it"),
        ((*ONLINE, "train.gap_rows=8"), "not trained on given answers", "drop it"),
        ((*ONLINE, "data.mix.replay.files=[rows.csv]"), "nothing that loss.kind", "drop it"),
        (("loss.kind=dpo", "data.mix.replay.files=[rows.csv]"), "nothing that loss.kind dpo", "drop it"),
        (("train.lr_scheduler=wsd", "train.warmup_ratio=0.95"), "more than the whole", ""),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(project, luthier, asked, words, hint):
    error = luthier("train", "-c", project, *settings(*asked)).exception
    assert isinstance(error, ConfigError) and words in str(error) and hint in error.hint

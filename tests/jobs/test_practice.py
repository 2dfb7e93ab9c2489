"""Training practice through the CLI: what is on record and on the console, and what is refused before a base loads."""

import json

import pytest

from luthier.errors import ConfigError
from luthier.store.publish import read_manifest
from tests.jobs.toy import make_texts, write_project

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


@pytest.mark.parametrize(
    ("asked", "words", "hint"),
    [
        (("train.metric_for_best=accuracy",), "no dev row is answered while training", "train.eval_task_rows"),
        (("train.metric_for_best=reward_accuracy",), "is not computed in this project", "loss, accuracy"),
        (("adapter.method=adalora", "train.ema_decay=0.9"), "adalora takes ranks away", "train.ema_decay: null"),
        (("adapter.method=adalora", "train.average_checkpoints=2"), "adalora takes ranks away", "adapter.method: lora"),
        (("train.lr_scheduler=wsd", "train.warmup_ratio=0.95"), "more than the whole", ""),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(project, luthier, asked, words, hint):
    error = luthier("train", "-c", project, *settings(*asked)).exception
    assert isinstance(error, ConfigError) and words in str(error) and hint in error.hint

"""What surrounds a step: evaluation, early stopping, logs, progress."""

import json

import pytest
import torch

from luthier.engine.evaluation import dev_figures
from luthier.engine.loop import train
from luthier.errors import TrainError
from luthier.losses.sft import sft_loss_sum
from tests.engine.small import make_batch, plain_model, plan_epoch, rows, run, same, small_model, spec_of, weights_of


@pytest.mark.known_bug("PK4")
@pytest.mark.parametrize("budget", [20, 60, 400])
def test_dev_loss_does_not_depend_on_the_batches(budget):
    """Token-weighted over the whole split, dropout off (B4)."""
    model, dev = small_model(dropout=0.5), rows(8, seed=9)
    model.train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # at zero, dropout would show nowhere
            torch.nn.init.normal_(parameter)
    cpu = torch.device("cpu")
    got = dev_figures(model, sft_loss_sum, dev, plan_epoch(dev, budget, 0, 0), make_batch, cpu, lambda: False)["loss"]
    one = dev_figures(model, sft_loss_sum, dev, [[i] for i in range(8)], make_batch, cpu, lambda: False)["loss"]
    assert got == pytest.approx(one, rel=1e-6)


@pytest.mark.known_bug("BE")
def test_learns_and_says_so(tmp_path):
    """Loss falls on a task that can be learnt; two runs of one seed are equal, of two seeds are not."""
    spec = spec_of(num_epochs=8, learning_rate=0.05, lr_scheduler="cosine")
    models = [plain_model() for _ in range(3)]  # a random frozen head could not say the answer
    for number, (model, seed) in enumerate(zip(models, (0, 0, 1), strict=True)):
        run(model, spec.model_copy(update={"seed": seed}), tmp_path / str(number), dev_set=rows(24))
    lines = [json.loads(line) for line in (tmp_path / "0" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "dev"]
    assert losses[-1] < losses[0] - 0.2 and all(line.get("grad_norm", 1) > 0 for line in lines)
    assert same(weights_of(models[0]), weights_of(models[1])) and not same(weights_of(models[0]), weights_of(models[2]))


@pytest.mark.parametrize("width", [1, 8])
def test_a_training_set_smaller_than_one_step_is_trained_whole(tmp_path, width):
    """Three rows where a step takes more: an epoch is one step over all of them, none is dropped as incomplete."""
    few = rows(3)
    spec = spec_of(num_epochs=3, gradient_accumulation_steps=width, micro_batch_tokens=400)
    result = run(small_model(), spec, tmp_path, train_set=few, dev_set=None)
    assert result.steps == result.total_steps == 3
    assert result.tokens == 3 * sum(len(row.ids) for row in few)
    assert result.trained_tokens == 3 * sum(sum(row.trained) for row in few)


def test_early_stopping_counts_evaluations_without_gain(tmp_path):
    """Patience 2: stops after the second evaluation in a row that is not better, and returns the best."""
    scores = iter([0.1, 0.3, 0.3, 0.2, 0.9])
    spec = spec_of(
        num_epochs=5, eval_steps=2, metric_for_best="acc", eval_task_rows=1, early_stopping_patience=2, save_steps=100
    )
    result = run(
        small_model(), spec, tmp_path, on_eval=lambda step, sampler: {"acc": next(scores)}, make_sampler=lambda: None
    )
    assert (result.status, result.best_metric, result.best_step) == ("early_stopped", 0.3, 4)
    assert result.steps < result.total_steps and [record["acc"] for record in result.history] == [0.1, 0.3, 0.3, 0.2]
    again = run(small_model(), spec, tmp_path)  # the stop is remembered
    assert again.status == "early_stopped" and again.steps == result.steps


def test_the_gap_is_that_of_the_same_measure_and_ends_a_run(tmp_path):
    """train_loss is the dev measure on rows of the training set; above max_gap the run stops, and stays stopped."""
    spec = spec_of(num_epochs=30, eval_steps=4, gap_rows=24, learning_rate=0.05)
    model = plain_model()
    whole = run(model, spec, tmp_path / "whole")
    gaps = [record["gap"] for record in whole.history]
    assert whole.stopped_by is None and gaps[-1] > gaps[0] + 0.3, "it learns random rows by heart"
    for record in whole.history:
        assert record["gap"] == pytest.approx(record["loss"] - record["train_loss"])
    best, cpu = plain_model(), torch.device("cpu")
    best.load_state_dict(weights_of(model), strict=False)
    packs = plan_epoch(rows(24), 40, 0, 0)
    seen = dev_figures(best, sft_loss_sum, rows(24), packs, make_batch, cpu, lambda: False)["loss"]
    at_best = next(record for record in whole.history if record["step"] == whole.best_step)
    assert at_best["train_loss"] == pytest.approx(seen, rel=1e-5), "all 24 rows, whatever their order"
    limit = (gaps[0] + gaps[-1]) / 2
    first = next(record["step"] for record in whole.history if record["gap"] > limit)
    stopping = spec.model_copy(update={"max_gap": limit})
    for _ in range(2):
        cut = run(plain_model(), stopping, tmp_path / "cut")
        assert (cut.status, cut.stopped_by, cut.steps) == ("early_stopped", "gap", first)


def test_a_task_metric_that_is_not_reported_is_an_error(tmp_path):
    """metric_for_best must be among the dev figures; the error lists them."""
    with pytest.raises(TrainError, match="'f1' is not among") as error:
        run(small_model(), spec_of(metric_for_best="f1", eval_task_rows=1), tmp_path)
    assert "there are loss" in error.value.hint


def test_evaluation_moves_no_generator(tmp_path):
    """Sampling with torch's global generator inside on_eval changes nothing about training with dropout."""
    models = [small_model(dropout=0.3), small_model(dropout=0.3)]
    run(models[0], spec_of(eval_steps=2), tmp_path / "plain")
    run(
        models[1], spec_of(eval_steps=2), tmp_path / "noisy",
        on_eval=lambda step, sampler: {"x": float(torch.rand(5).sum())}, make_sampler=lambda: None,
    )  # fmt: skip
    assert same(weights_of(models[0]), weights_of(models[1]))


def test_window_figures_and_progress(tmp_path):
    """A logged loss is the token-weighted mean since the last line; the bar gets loss, speed and the time left."""
    seen, spec = [], spec_of(logging_steps=3, num_epochs=1)
    one = run(small_model(), spec_of(num_epochs=1), tmp_path / "one", dev_set=None)
    run(
        small_model(), spec, tmp_path / "three", dev_set=None,
        progress=lambda done, total, **figures: seen.append((done, total, set(figures))),
    )  # fmt: skip
    singles, thirds = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "three")
    )
    counts = [0, *(line["num_trained_tokens"] for line in singles)]
    weighted = [line["loss"] * (counts[i + 1] - counts[i]) for i, line in enumerate(singles)]
    assert thirds[0]["step"] == 3 and thirds[0]["loss"] == pytest.approx(sum(weighted[:3]) / counts[3])
    assert thirds[-1]["step"] == one.steps
    assert seen[-1] == (one.steps, one.steps, {"loss", "tokens_per_s", "eta_s"}) and len(seen) == one.steps


@pytest.mark.known_bug("PK4")
def test_result_carries_the_figures_of_the_run(tmp_path):
    """Tokens as the rows say, peak memory, seconds; without a dev split the last step is the best."""
    chosen = rows(24)
    result = run(small_model(), spec_of(num_epochs=2), tmp_path, dev_set=None)
    assert result.tokens == 2 * sum(len(row.ids) for row in chosen)
    assert result.trained_tokens == 2 * sum(sum(row.trained) for row in chosen)
    assert result.peak_bytes > 50_000_000 and result.seconds > 0
    assert result.best_step == result.steps == result.total_steps and result.best_metric is None


@pytest.mark.known_bug("GA3")
def test_speed_is_all_tokens_of_a_step_over_its_time(tmp_path):
    """tokens_per_s with accumulation: every micro-batch of every step counts once, and time is not counted twice."""
    result = run(small_model(), spec_of(gradient_accumulation_steps=3), tmp_path, dev_set=None)
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["num_tokens"] == result.tokens == 2 * sum(len(row.ids) for row in rows(24))
    assert last["tokens_per_s"] == pytest.approx(result.tokens / result.seconds, rel=1e-6)


def test_max_steps_ends_inside_an_epoch(tmp_path):
    """The cap is on optimizer steps; the schedule ends there too, and the last step is evaluated and saved."""
    result = run(small_model(), spec_of(max_steps=3), tmp_path)
    assert result.steps == result.total_steps == 3 and result.status == "completed"
    assert [record["step"] for record in result.history] == [3]


def test_any_trainable_module_will_do(tmp_path):
    """The engine knows no adapter: full fine-tuning of a model that has none works the same."""
    model = plain_model()
    train(
        model, sft_loss_sum, spec_of(max_steps=2), train_set=rows(8), dev_set=None, make_batch=make_batch,
        plan_epoch=plan_epoch, run_dir=tmp_path,
    )  # fmt: skip
    assert "model.embed_tokens.weight" in weights_of(model)

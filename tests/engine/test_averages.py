"""Moving averages and means of checkpoints: against plain arithmetic on the weights of every step."""

import json

import pytest
import torch

from luthier.engine import checkpoint
from luthier.engine.evaluation import dev_figures
from luthier.errors import TrainError
from luthier.losses.sft import sft_loss_sum
from tests.engine.small import make_batch, plan_epoch, rows, run, same, small_model, spec_of, weights_of

EVERY = {"save_steps": 1, "save_total_limit": 99, "eval_steps": 1, "max_steps": 8}


def saved(folder, step):
    return checkpoint.load_weights(checkpoint.folder_of(folder / "checkpoints", step))


def dev_loss(weights):
    """Of a model with these weights, outside of any run."""
    model, dev = small_model(), rows(8, seed=9)
    model.load_state_dict(weights, strict=False)
    packs = plan_epoch(dev, 40, 0, 0)
    return dev_figures(model, sft_loss_sum, dev, packs, make_batch, torch.device("cpu"), lambda: False)["loss"]


def logged(folder, kind):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


@pytest.mark.parametrize("decay", [0.3, 0.99])
def test_the_moving_average_is_the_recurrence(tmp_path, decay):
    """From the saved weights of every step, in float64; 0.99 is above what the first steps may keep."""
    start = {name: p.double() for name, p in weights_of(small_model()).items()}
    run(small_model(), spec_of(**EVERY, ema_decay=decay), tmp_path)
    average = start
    for step in range(1, 9):
        keep = min(decay, (1 + step) / (10 + step))
        weights = saved(tmp_path, step)
        average = {name: keep * average[name] + (1 - keep) * weights[name].double() for name in start}
        for name in start:
            torch.testing.assert_close(weights[f"ema.{name}"].double(), average[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("keep", [True, False])
def test_what_is_judged_and_kept_is_what_was_asked_for(tmp_path, keep):
    """Dev figures and the weights at the end are the average's, or the weights' own with ema_loss beside them."""
    plain, model = small_model(), small_model()
    run(plain, spec_of(**EVERY), tmp_path / "plain")
    result = run(model, spec_of(**EVERY, ema_decay=0.9, ema_keep=keep), tmp_path / "ema")
    best = saved(tmp_path / "ema", result.best_step)
    own = {name: best[name] for name in weights_of(plain)}
    average = {name: best[f"ema.{name}"] for name in own}
    assert same(own, {n: saved(tmp_path / "plain", result.best_step)[n] for n in own}), "training is what it was"
    assert same(weights_of(model), average if keep else own) and not same(average, own)
    figures = logged(tmp_path / "ema", "dev")[result.best_step - 1]
    assert figures["loss"] == pytest.approx(dev_loss(average if keep else own), rel=1e-5)
    assert ("ema_loss" in figures) is (not keep)
    if not keep:
        assert figures["ema_loss"] == pytest.approx(dev_loss(average), rel=1e-5)


@pytest.mark.parametrize(("which", "steps"), [("best", (2, 4, 6)), ("last", (6, 7, 8))])
@pytest.mark.parametrize("of_mean", [0.95, 0.1])
def test_the_mean_is_that_of_the_chosen_and_kept_when_it_is_no_worse(tmp_path, which, steps, of_mean):
    """Three checkpoints outlive a limit of one; a mean that is worse than the best one (step 4) is told, not kept."""
    scores = iter([0.1, 0.8, 0.2, 0.9, 0.2, 0.8, 0.3, 0.4, of_mean])
    spec = spec_of(
        **EVERY | {"save_steps": None, "save_total_limit": 1}, average_checkpoints=3, average_of=which,
        metric_for_best="acc", eval_task_rows=1,
    )  # fmt: skip
    model = small_model()
    handed = {"on_eval": lambda step, sampler: {"acc": next(scores)}, "make_sampler": lambda: None}
    result = run(model, spec, tmp_path, **handed)
    average = result.average
    assert average is not None and average.steps == steps and average.figures["acc"] == of_mean
    assert average.kept is (of_mean == 0.95) and result.best_step == 4
    chosen = [saved(tmp_path, step) for step in steps]
    if average.kept:
        for name, p in weights_of(model).items():
            torch.testing.assert_close(p, torch.stack([one[name] for one in chosen]).mean(0), rtol=1e-5, atol=1e-7)
    else:
        assert same(weights_of(model), {name: saved(tmp_path, 4)[name] for name in weights_of(model)})
    assert average.figures["loss"] == pytest.approx(
        dev_loss({name: torch.stack([one[name] for one in chosen]).mean(0) for name in weights_of(model)}), rel=1e-5
    )


def test_less_is_better_where_it_is_an_error(tmp_path):
    scores = iter([5.0, 2.0, 3.0, 4.0, 9.0, 9.0, 9.0, 9.0])
    spec = spec_of(**EVERY, metric_for_best="absolute_error", eval_task_rows=1)
    handed = {"on_eval": lambda step, sampler: {"absolute_error": next(scores)}, "make_sampler": lambda: None}
    result = run(small_model(), spec, tmp_path, **handed)
    assert (result.best_step, result.best_metric) == (2, 2.0)


def test_without_a_dev_split_there_is_nothing_to_average(tmp_path):
    with pytest.raises(TrainError, match=r"train.average_checkpoints need a dev split"):
        run(small_model(), spec_of(average_checkpoints=2), tmp_path, dev_set=None)

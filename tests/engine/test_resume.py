"""A resumed run equals the uninterrupted one bitwise, and a checkpoint is whole or not there (B19, B20, B32, B34,
R1-R5).
"""

import json
import os
import random
import shutil

import numpy as np
import pytest
import torch

from luthier.engine import checkpoint
from luthier.engine.checkpoint import SaveFailed
from luthier.errors import ArtifactError, Interrupted, TrainError
from luthier.store.publish import verify_folder
from tests.engine.small import make_batch, run, same, small_model, spec_of, weights_of


class StopAfter:
    """A stop callable that fires once the progress callback has seen `step`."""

    def __init__(self, step: int) -> None:
        self.step, self.done = step, 0

    def progress(self, done: int, total: int, **figures: float) -> None:
        self.done = done

    def __call__(self) -> bool:
        return self.done >= self.step


def _interrupted(spec, run_dir, step, **changes):
    stop = StopAfter(step)
    with pytest.raises(Interrupted, match=f"stopped after step {step} ") as error:
        run(small_model(dropout=0.2), spec, run_dir, stop=stop, progress=stop.progress, **changes)
    assert "goes on from there" in error.value.hint and error.value.exit_code == 75


def _final(spec, run_dir, **changes):
    """Weights after the run, straight from the newest checkpoint (the model may hold an earlier best)."""
    model = small_model(dropout=0.2, adapter_seed=5)  # other start values: all must come from the checkpoint
    result = run(model, spec, run_dir, **changes)
    folder = checkpoint.folder_of(run_dir / "checkpoints", result.steps)
    tensors = {}
    for name in ("weights", "optimizer", "rng"):
        tensors |= {f"{name}.{key}": t for key, t in checkpoint.load_file(folder / f"{name}.safetensors").items()}
    return result, weights_of(model), tensors


@pytest.mark.parametrize("accumulation", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("where", ["mid-epoch", "epoch-end", "first", "last-but-one"])
def test_resume_is_bitwise(tmp_path, accumulation, where):
    """Dropout 0.2, moments, best and early-stop state, all generators: equal to a run that was never stopped."""
    spec = spec_of(gradient_accumulation_steps=accumulation, num_epochs=3, save_steps=2, early_stopping_patience=9)
    whole = run(small_model(dropout=0.2), spec, tmp_path / "whole")
    per_epoch = whole.total_steps // 3
    steps = {"mid-epoch": per_epoch + 1, "epoch-end": per_epoch, "first": 1, "last-but-one": whole.total_steps - 1}
    _interrupted(spec, tmp_path / "cut", steps[where])
    random.random(), np.random.rand(), torch.rand(1)  # the new process stands somewhere else
    result, held, tensors = _final(spec, tmp_path / "cut")
    expected_result, expected_held, expected = _final(spec, tmp_path / "whole")
    assert same(tensors, expected) and same(held, expected_held)
    for what in ("best_step", "best_metric", "history"):
        assert getattr(result, what) == getattr(expected_result, what)
    assert (result.tokens, result.trained_tokens) == (whole.tokens, whole.trained_tokens)


def test_many_stops_use_each_row_once_an_epoch_and_log_no_step_twice(tmp_path):
    """Stopped after every step: rows in the uninterrupted order (R4), one metrics line per step."""
    spec, seen = spec_of(num_epochs=2), []

    def recording(chosen):
        seen.append(tuple(row.row_id for row in chosen))
        return make_batch(chosen)

    handed = {"make_batch": recording, "dev_set": None, "rehearse": False}
    total = run(small_model(dropout=0.2), spec, tmp_path / "whole", **handed).total_steps
    expected = list(seen)
    seen.clear()
    for step in range(1, total):
        _interrupted(spec, tmp_path / "cut", step, **handed)
    _final(spec, tmp_path / "cut", **handed)
    assert seen == expected
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, total + 1))


def test_a_stop_during_evaluation_evaluates_first_on_resume(tmp_path):
    """The cut-off evaluation leaves no figure behind and is made good; the result is that of an uninterrupted run."""
    spec, model = spec_of(), small_model(dropout=0.2)
    whole = run(small_model(dropout=0.2), spec, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(model, spec, tmp_path / "cut", stop=lambda: not model.training)
    assert not [line for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines() if '"dev"' in line]
    result, _, tensors = _final(spec, tmp_path / "cut")
    assert result.history == whole.history and same(tensors, _final(spec, tmp_path / "whole")[2])


class Crash(Exception):
    """Stands for a kill: nothing of luthier handles it."""


def _crash_at(step):
    def progress(done, total, **figures):
        if done == step:
            raise Crash

    return progress


def test_a_killed_run_goes_back_to_its_checkpoint_and_logs_no_step_twice(tmp_path):
    """Killed three steps after the last save: the three are taken again, the log has each step once."""
    spec = spec_of(save_steps=2)
    whole = run(small_model(dropout=0.2), spec, tmp_path / "whole")
    with pytest.raises(Crash):
        run(small_model(dropout=0.2), spec, tmp_path / "cut", progress=_crash_at(6))
    result, _, tensors = _final(spec, tmp_path / "cut")
    assert same(tensors, _final(spec, tmp_path / "whole")[2]) and result.history == whole.history
    lines = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, whole.total_steps + 1))


def test_an_evaluation_made_good_is_saved_at_once(tmp_path):
    """Stopped inside an evaluation, resumed, killed one step later: the evaluation is not logged a second time."""
    spec, model = spec_of(), small_model(dropout=0.2)
    whole = run(small_model(dropout=0.2), spec, tmp_path / "whole")
    half = whole.total_steps // 2
    with pytest.raises(Interrupted):
        run(model, spec, tmp_path / "cut", stop=lambda: not model.training)
    with pytest.raises(Crash):
        run(small_model(dropout=0.2), spec, tmp_path / "cut", progress=_crash_at(half + 1))
    result, _, _ = _final(spec, tmp_path / "cut")
    lines = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "dev"] == [half, whole.total_steps]
    assert result.history == whole.history


def test_a_finished_run_is_not_trained_again(tmp_path):
    """The second call returns the first one's result and weights."""
    model = small_model()
    first = run(model, spec_of(), tmp_path)
    again = small_model(adapter_seed=7)
    second = run(again, spec_of(), tmp_path)
    assert same(weights_of(model), weights_of(again))
    assert (second.history, second.steps) == (first.history, first.steps)


SLOW_DAMAGE = [pytest.param(damage, marks=pytest.mark.slow) for damage in ("cut", "delete", "no manifest")]


@pytest.mark.parametrize("damage", ["flip", "swap", *SLOW_DAMAGE])
def test_torn_checkpoints_are_named_and_skipped(tmp_path, damage, caplog):
    """The newest whole one wins; the run still ends bitwise equal (B20, R5)."""
    spec = spec_of(save_steps=1, save_total_limit=3)
    whole = run(small_model(dropout=0.2), spec, tmp_path / "whole")
    _interrupted(spec, tmp_path / "cut", 5)
    newest = tmp_path / "cut" / "checkpoints" / "step-000005"
    victim = newest / "optimizer.safetensors"
    content = victim.read_bytes()
    if damage == "cut":
        victim.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        victim.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    elif damage == "delete":
        victim.unlink()
    elif damage == "no manifest":
        (newest / "manifest.json").unlink()
    else:
        shutil.copy(tmp_path / "cut" / "checkpoints" / "step-000004" / "optimizer.safetensors", victim)
    result, _, tensors = _final(spec, tmp_path / "cut")
    assert "step-000005 is skipped" in caplog.text
    assert same(tensors, _final(spec, tmp_path / "whole")[2]) and result.history == whole.history


@pytest.mark.parametrize(
    ("spec_change", "guard", "field"),
    [
        ({"learning_rate": 0.5}, {"data": "d1", "base": "b1"}, "train.learning_rate was 0.01, now it is 0.5"),
        ({}, {"data": "d2", "base": "b1"}, "data was 'd1', now it is 'd2'"),
        ({}, {"data": "d1"}, "base was 'b1', now it is not there"),
        ({"micro_batch_tokens": 60}, {"data": "d1", "base": "b1"}, "train.micro_batch_tokens was 40, now it is 60"),
    ],
)
def test_changed_guards_are_refused_by_name(tmp_path, spec_change, guard, field):
    """Going on with other data, model or settings is an error that names the field."""
    _interrupted(spec_of(), tmp_path, 2)
    with pytest.raises(TrainError, match=f"cannot go on from .*{field}"):
        run(small_model(dropout=0.2), spec_of(**spec_change), tmp_path, guard=guard)


def test_settings_that_move_no_weight_may_change(tmp_path):
    """Other logging, trackers and rotation do not block a resume."""
    _interrupted(spec_of(), tmp_path, 2)
    run(small_model(dropout=0.2), spec_of(logging_steps=3, save_total_limit=1, save_steps=5), tmp_path)


def test_rotation_keeps_best_and_newest(tmp_path):
    """Whatever the limit: the best and the newest stay, the rest is the newest ones; the model ends with the best
    (B32).
    """
    scores = iter([0.1, 0.9, 0.5, 0.4, 0.3, 0.2, 0.2, 0.2, 0.2, 0.2])
    spec = spec_of(eval_steps=2, save_steps=1, save_total_limit=1, metric_for_best="acc", eval_task_rows=1, max_steps=9)
    model, at_best = small_model(), {}

    def on_eval(step, sampler):
        if step == 4:
            at_best.update(weights_of(model))
        return {"acc": next(scores)}

    result = run(model, spec, tmp_path, on_eval=on_eval, make_sampler=lambda: None)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-000004", "step-000009"] and result.best_step == 4 and result.best_metric == 0.9
    assert same(weights_of(model), at_best)


@pytest.mark.parametrize("lost", [True, False])
def test_a_lost_best_checkpoint_is_replaced_by_the_best_that_stands(tmp_path, lost):
    """The choice is made again among what is there, and said; otherwise the best stays the best."""
    scores = [0.0, 0.1, 0.9, 0.5, 0.2, 0.4, 0.3, 0.3, 0.3, 0.3]
    spec = spec_of(eval_steps=1, save_steps=1, save_total_limit=3, metric_for_best="acc", eval_task_rows=1, max_steps=9)
    judged = {"on_eval": lambda step, sampler: {"acc": scores[step]}, "make_sampler": lambda: None}
    _interrupted(spec, tmp_path, 6, **judged)
    root, said = tmp_path / "checkpoints", []
    assert sorted(path.name[-1] for path in root.iterdir()) == ["2", "5", "6"]
    expected = 5 if lost else 2
    at_best = checkpoint.load_weights(checkpoint.folder_of(root, expected))
    if lost:
        (root / "step-000002" / "weights.safetensors").write_bytes(b"torn")
    model = small_model(dropout=0.2)
    result = run(model, spec, tmp_path, notice=said.append, **judged)
    assert (result.best_step, result.best_metric) == (expected, scores[expected])
    assert same(weights_of(model), at_best)
    words = ["the best checkpoint, that of step 2, is lost; best of those that stand: step 5"]
    assert said == (words if lost else [])
    assert (root / "torn" / "step-000002").exists() == lost


def test_rotation_deletes_nothing_when_the_new_one_does_not_read_back(tmp_path):
    """A torn newest checkpoint must not cost an older whole one."""
    for step in (1, 2, 3):
        state = checkpoint.RunState(step=step)
        checkpoint.save(tmp_path, state, {"w": torch.ones(2)}, {"w.step": torch.ones(1)}, {})
    (tmp_path / "step-000003" / "weights.safetensors").write_bytes(b"torn")
    with pytest.raises(SaveFailed, match=r"does not read back.*weights\.safetensors"):
        checkpoint.rotate(tmp_path, newest=3, keep=(), limit=1)
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(ArtifactError, match="is torn"):
        checkpoint.load_weights(tmp_path / "step-000003")


def test_checkpoints_are_whole_small_and_free_of_pickle(tmp_path):
    """Adapter + two moments + at most 10% (B34), sealed by a manifest, safetensors and JSON only."""
    model = small_model(lora_r=16)
    run(model, spec_of(), tmp_path, dev_set=None)
    trained_bytes = 3 * sum(weight.nbytes for weight in weights_of(model).values())
    for folder in (tmp_path / "checkpoints").iterdir():
        assert verify_folder(folder) == []
        assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}
        weights_only = sum((folder / f"{name}.safetensors").stat().st_size for name in ("weights", "optimizer"))
        assert weights_only <= 1.1 * trained_bytes
        assert sum(path.stat().st_size for path in folder.iterdir()) <= 1.1 * trained_bytes + 40_000


def test_two_never_train_in_one_folder(tmp_path):
    """The second one is told who holds it, and the first goes on unharmed."""
    told = []

    def progress(done, total, **figures):
        if done == 2:
            with pytest.raises(ArtifactError) as error:
                run(small_model(), spec_of(), tmp_path)
            told.append((str(error.value), error.value.hint))

    result = run(small_model(), spec_of(), tmp_path, progress=progress)
    ((message, hint),) = told
    assert f"is in use by another luthier (process {os.getpid()} on " in message and "another folder" in hint
    assert result.steps == result.total_steps


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    """Broken behind the back of every other guard, right before a save: the tensor is named, the checkpoint before
    stands."""
    model = small_model()

    def progress(done, total, **figures):
        if done == 3:
            next(p for p in model.parameters() if p.requires_grad).data[0, 0] = float("inf")

    with pytest.raises(TrainError, match=r"after step 3 the trained tensor .* not finite; .*; step-000002 stands"):
        run(model, spec_of(save_steps=1), tmp_path, progress=progress)
    assert checkpoint.load_newest(tmp_path / "checkpoints", _guard_of(tmp_path)).state.step == 2


def _guard_of(folder):
    return json.loads((checkpoint.folder_of(folder / "checkpoints", 2) / "state.json").read_bytes())["guard"]


def test_a_stop_between_sampled_tokens_samples_again_on_resume(tmp_path):
    """A long answer must not hold up a stop."""
    tokens = []

    class Sampler:
        name = "tokens"

        def sample(self, prompts, *, progress=None, **settings):
            for token in range(200):
                tokens.append(token)
                progress(token, 200)
            return []

    def on_eval(step, sampler):
        sampler.sample([], max_new_tokens=200)
        return {"acc": 0.5}

    spec, handed = spec_of(eval_task_rows=1, max_steps=3), {"on_eval": on_eval, "make_sampler": Sampler}
    with pytest.raises(Interrupted):
        run(small_model(), spec, tmp_path / "cut", stop=lambda: len(tokens) >= 50, **handed)
    assert len(tokens) == 50
    again, whole = (run(small_model(), spec, tmp_path / name, **handed) for name in ("cut", "whole"))
    assert again.history == whole.history and [record["acc"] for record in again.history] == [0.5]

"""Exact resume: wherever a run is cut, whatever its settings, its end is that of the uninterrupted run, bit for bit:
weights, moments, generators, counters, history, the log (R3, R4). Only clocks may differ.
"""

import json

import pytest
import torch

from luthier.adapters.lora import apply_lora
from luthier.config.adapter import AdapterSpec
from luthier.data.pack import epoch_batches, make_shared_batch
from luthier.engine import checkpoint
from luthier.engine.loop import train
from luthier.errors import Interrupted
from luthier.losses.sft import sft_loss_sum
from luthier.models.int8 import load_frozen
from luthier.types import EncodedRow
from tests.engine.small import make_batch, plan_epoch, rows, small_model, spec_of
from tests.engine.test_memory import Full
from tests.engine.test_shared_prefix import prompted_rows

CLOCKS = {"seconds", "evaluation_s", "recompute_s", "wall_s"}
PLAIN = {"num_epochs": 3, "save_steps": 2, "gradient_accumulation_steps": 2}
SETTINGS = {
    "dropout": {},
    "accumulation": {"gradient_accumulation_steps": 3, "weight_decay": 0.1, "layer_lr_decay": 0.5},
    "no accumulation": {"gradient_accumulation_steps": 1, "warmup_ratio": 0.4, "lr_scheduler": "wsd"},
    "early stopping": {"eval_steps": 1, "early_stopping_patience": 3, "metric_for_best": "acc", "eval_task_rows": 1},
    "averages": {"eval_steps": 1, "ema_decay": 0.9, "average_checkpoints": 2, "save_total_limit": 1, "gap_rows": 4},
    "step not finite": {},
    "split after out of memory": {"gradient_accumulation_steps": 1},
    "shared prefix": {"share_prefix": "always", "sequence_len": 80, "micro_batch_tokens": 200},
    "bfloat16": {},
    "int8": {},
}
POINTS = ("mid-window", "mid-epoch", "epoch end", "evaluation", "killed after a save", "killed before the first save")
DEFAULT = {("dropout", point) for point in POINTS} | {(name, "mid-epoch") for name in SETTINGS}


class Killed(Exception):
    """Stands for a kill: nothing of luthier handles it."""


class World:
    """One session of a run under a setting; `cut` says where it ends."""

    def __init__(self, setting: str, base, folder) -> None:
        self.setting, self.base, self.folder, self.done, self.batches = setting, base, folder, 0, 0
        self.spec = spec_of(**{**PLAIN, **SETTINGS[setting]})

    def model(self):
        if self.setting not in ("shared prefix", "bfloat16", "int8"):
            model = small_model(dropout=0.2)
            if self.setting == "split after out of memory":
                Full(model, 25, MemoryError())
            return model
        dtype = self.setting if self.setting in ("bfloat16", "int8") else "float32"
        model = load_frozen(self.base, dtype=dtype, sample=make_batch(rows(8)))
        apply_lora(model, AdapterSpec(lora_r=4, lora_dropout=0.2), seed=1)
        return model

    def loss(self, logits_KV, targets_K):
        """NaN in the second step of a run, whichever session takes it."""
        bad = self.setting == "step not finite" and torch.is_grad_enabled() and self.done == 1
        return sft_loss_sum(logits_KV, targets_K) * (float("nan") if bad else 1.0)

    def go(self, cut: str = ""):
        model, self.batches = self.model(), 0
        shares = self.setting == "shared prefix"

        def progress(done, total, **figures):
            self.done = done
            ends = {"killed after a save": 3, "killed before the first save": 1}
            if done == ends.get(cut):
                raise Killed

        def stop():
            if model.training:
                self.batches += 1
            per_epoch = self.per_epoch
            return {
                "mid-window": self.batches == 2 * (self.spec.gradient_accumulation_steps + 1),
                "mid-epoch": self.done >= 1,
                "epoch end": self.done >= per_epoch,
                "evaluation": not model.training,
            }.get(cut, False)

        def on_eval(step, sampler):
            torch.rand(3)
            return {"acc": [0.1, 0.5, 0.2, 0.5, 0.4, 0.9][step % 6]}

        handed = {"train_set": prompted_rows(40, 1) if shares else rows(24), "dev_set": rows(8, seed=9)}
        self.per_epoch = max(1, len(plan_epoch(handed["train_set"], self.spec.micro_batch_tokens, 0, 0)) // 2)
        return train(
            model, self.loss, self.spec, **handed, run_dir=self.folder,
            make_batch=make_shared_batch if shares else make_batch, plan_epoch=epoch_batches if shares else plan_epoch,
            on_eval=on_eval if self.spec.eval_task_rows else None, make_sampler=lambda: None, progress=progress,
            stop=stop, rehearse=self.setting != "step not finite", notice=lambda text: None,
        )  # fmt: skip


def all_of(result, folder):
    """Everything that a run leaves behind, clocks aside."""
    newest = checkpoint.folder_of(folder / "checkpoints", result.steps)
    content = json.loads((newest / "state.json").read_bytes())
    state = {name: value for name, value in content["state"].items() if name not in CLOCKS}
    lines = {}
    for name in ("metrics.jsonl", "skipped.jsonl"):
        path = folder / name
        lines[name] = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        for line in lines[name]:
            line.pop("tokens_per_s", None)
    tensors = {}
    for name in ("weights", "optimizer", "rng"):
        tensors |= {f"{name}.{key}": t for key, t in checkpoint.load_file(newest / f"{name}.safetensors").items()}
    rest = {"state": state, "guard": content["guard"], "lines": lines, "best": (result.best_step, result.best_metric)}
    return tensors, json.dumps({**rest, "python_gauss": content["python_gauss"]}, sort_keys=True)


_WHOLE: dict[str, tuple] = {}


def whole_run(setting, base, tmp_path_factory):
    if setting not in _WHOLE:
        folder = tmp_path_factory.mktemp("whole")
        result = World(setting, base, folder).go()
        _WHOLE[setting] = all_of(result, folder)
    return _WHOLE[setting]


CASES = [
    pytest.param(setting, point, id=f"{setting}-{point}", marks=() if (setting, point) in DEFAULT else pytest.mark.slow)
    for setting in SETTINGS
    for point in POINTS
]


@pytest.mark.parametrize(("setting", "point"), CASES)
def test_the_end_is_that_of_the_uninterrupted_run(tmp_path, tmp_path_factory, tiny_base, setting, point):
    expected_tensors, expected = whole_run(setting, tiny_base, tmp_path_factory)
    world = World(setting, tiny_base, tmp_path)
    with pytest.raises((Interrupted, Killed)):
        world.go(point)
    torch.rand(7)  # the next process stands somewhere else
    again = World(setting, tiny_base, tmp_path)
    again.done = int(max((p.name[5:] for p in (tmp_path / "checkpoints").glob("step-*")), default=0))
    tensors, rest = all_of(again.go(), tmp_path)
    assert tensors.keys() == expected_tensors.keys() and rest == expected
    assert all(torch.equal(tensors[name], expected_tensors[name]) for name in tensors)
    if setting == "step not finite":
        assert '"step": 2' in (tmp_path / "skipped.jsonl").read_text() and '"num_refused": 1' in rest


def test_a_row_is_used_once_an_epoch_over_many_kills(tmp_path):
    """Killed after every other step, 20 times: the rows of the steps that count are those of the uninterrupted run."""
    spec, seen = spec_of(num_epochs=4, save_steps=1), []

    def recording(chosen):
        seen.append(tuple(row.row_id for row in chosen))
        return make_batch(chosen)

    def session(folder, kill_at):
        def progress(done, total, **figures):
            if done == kill_at:
                raise Killed

        train(
            small_model(dropout=0.2), sft_loss_sum, spec, train_set=rows(24), dev_set=None, make_batch=recording,
            plan_epoch=plan_epoch, run_dir=folder, progress=progress, rehearse=False,
        )  # fmt: skip

    session(tmp_path / "whole", None)
    expected = list(seen)
    seen.clear()
    used: list[tuple[str, ...]] = []
    for kill_at in range(2, len(expected), 2):
        with pytest.raises(Killed):
            session(tmp_path / "cut", kill_at)
        used = used[: kill_at - 2] + seen[-2:] if kill_at == 2 else used[: kill_at - 3] + seen
        seen.clear()
        used = used[:kill_at]
    session(tmp_path / "cut", None)
    used = used[: len(expected) - len(seen)] + seen
    assert used == expected
    assert sorted(row for step in used for row in step) == sorted(f"row-{i}" for i in range(24) for _ in range(4))


GUARDED = {
    "train.learning_rate": {"learning_rate": 0.5},
    "train.gradient_accumulation_steps": {"gradient_accumulation_steps": 4},
    "train.spike_sigmas": {"spike_sigmas": None},
    "train.seed": {"seed": 1},
}
GUARD = {
    "prepared": "d1", "base": {"weights": "b1", "tokenizer.json": "t1", "chat_template.jinja": "c1"},
    "adapter": {"lora_r": 4},
}  # fmt: skip


@pytest.mark.parametrize(
    "field",
    [*GUARDED, "prepared", "base.weights", "base.tokenizer.json", "base.chat_template.jinja", "adapter.lora_r",
     "order of rows", "version of torch", "version of luthier"],
)  # fmt: skip
def test_going_on_otherwise_is_refused_by_the_name_of_the_field(tmp_path, field):
    """Settings, data, tokenizer, template, base, libraries: each alone, and nothing is written."""
    handed = {"dev_set": None, "make_batch": make_batch, "run_dir": tmp_path, "rehearse": False}
    train_set = rows(24)
    stopped = [False, True]
    with pytest.raises(Interrupted):
        train(
            small_model(), sft_loss_sum, spec_of(), train_set=train_set, plan_epoch=plan_epoch, guard=GUARD,
            stop=lambda: stopped.pop(0) if stopped else True, **handed,
        )  # fmt: skip
    guard, plan = json.loads(json.dumps(GUARD)), plan_epoch
    if field.startswith("base."):
        guard["base"][field[5:]] = "other"
    elif field == "adapter.lora_r":
        guard["adapter"]["lora_r"] = 9
    elif field == "prepared":
        guard["prepared"] = "d2"
    elif field == "order of rows":
        plan = lambda *args: plan_epoch(*args)[::-1]  # noqa: E731
    elif field.startswith("version"):
        state = next((tmp_path / "checkpoints").glob("step-*")) / "state.json"
        content = json.loads(state.read_bytes())
        content["guard"][field] = "0.0.0"
        with checkpoint.publishing(state.parent, kind="checkpoint", facts={"step": int(state.parent.name[5:])}) as new:
            for path in state.parent.glob("*.safetensors"):
                (new / path.name).write_bytes(path.read_bytes())
            (new / "state.json").write_text(json.dumps(content))
    before = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(checkpoint.TrainError, match=f"cannot go on from .*: {field} was .*, now it is ") as error:
        train(
            small_model(), sft_loss_sum, spec_of(**GUARDED.get(field, {})), train_set=train_set, plan_epoch=plan,
            guard=guard, **handed,
        )  # fmt: skip
    assert error.value.hint == f"put {field} back, or start over in another run folder"
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_a_run_that_goes_on_with_other_threads_says_so(tmp_path, monkeypatch):
    """Rounding may differ then: a word, no refusal."""
    said, stopped = [], [False, True]
    handed = {
        "train_set": rows(24), "dev_set": None, "make_batch": make_batch, "plan_epoch": plan_epoch,
        "run_dir": tmp_path, "rehearse": False, "notice": said.append,
    }  # fmt: skip
    with pytest.raises(Interrupted):
        train(small_model(), sft_loss_sum, spec_of(), stop=lambda: stopped.pop(0) if stopped else True, **handed)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    train(small_model(), sft_loss_sum, spec_of(), **handed)
    assert len(said) == 1 and "-> 64" in said[0] and "up to rounding, not bit for bit" in said[0]


def test_ids_that_the_embedding_does_not_have_are_refused(tmp_path):
    """The row is named; nothing is trained."""
    bad = [*rows(3), EncodedRow("strange", (1, 2, 4000), (False, False, True))]
    with pytest.raises(checkpoint.TrainError, match=r"train row strange holds token id 4000.* has 96 rows"):
        train(
            small_model(), sft_loss_sum, spec_of(), train_set=bad, dev_set=None, make_batch=make_batch,
            plan_epoch=plan_epoch, run_dir=tmp_path,
        )  # fmt: skip

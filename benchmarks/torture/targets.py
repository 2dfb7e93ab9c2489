"""What is tortured: the same tiny model and rows under luthier's loop and under transformers' Trainer.

A target is what its user would run, and run again after a failure: it goes on with what it finds in `folder`.
"""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from benchmarks.torture.trial import SIGNAL, Clock, Fault, Settings
from luthier.engine.loop import train
from luthier.losses.sft import sft_loss_sum
from tests.engine.small import make_batch, plain_model, plan_epoch, rows, spec_of

ROWS, DEV_ROWS = rows(48), rows(8, seed=9)


def digest_of(model: torch.nn.Module) -> str:
    """sha256 over every parameter."""
    sha = hashlib.sha256()
    for name, parameter in model.named_parameters():
        sha.update(name.encode() + parameter.detach().numpy().tobytes())
    return sha.hexdigest()


def _model(settings: Settings) -> torch.nn.Module:
    model = plain_model()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = settings.dropout
    return model


class _Phases:
    """Sends this process SIGTERM when the named phase is reached, once. handled: as luthier's command does, by asking
    the loop to stop; else it is left to the target."""

    def __init__(self, wanted: str, *, handled: bool) -> None:
        self.wanted, self.asked = wanted, []
        if handled:
            signal.signal(signal.SIGTERM, lambda number, frame: self.asked.append(number))

    def reached(self, phase: str) -> None:
        if phase and self.wanted == phase:
            self.wanted = ""
            os.kill(os.getpid(), signal.SIGTERM)

    def stop(self) -> bool:
        return bool(self.asked)


class _TokenByToken:
    """A sampler that reports 200 tokens."""

    name = "tokens"

    def __init__(self, phases: _Phases) -> None:
        self.phases = phases

    def sample(self, prompts, *, progress=None, **settings):
        for token in range(200):
            if token == 100:
                self.phases.reached("task metrics")
            progress(token, 200)
        return []


def luthier(folder: Path, settings: Settings, fault: Fault, clock: Clock) -> dict:
    """luthier's training loop, with rehearsal, dev loss, task metrics and rotation."""
    torch.set_num_threads(1)
    handled = bool(fault.term) or fault.how == SIGNAL
    model, phases, done = _model(settings), _Phases(fault.term, handled=handled), [0]
    spec = spec_of(
        num_epochs=max(9, settings.steps // 8), max_steps=settings.steps, save_steps=settings.save_every,
        save_total_limit=2, gradient_accumulation_steps=settings.accumulation, eval_steps=4, eval_task_rows=1,
    )  # fmt: skip
    before: dict[str, str] = {}

    def loss(logits_KV, targets_K):
        if not torch.is_grad_enabled():
            phases.reached("evaluation")
            return sft_loss_sum(logits_KV, targets_K)
        phases.reached("step" if done[0] >= 5 else "rehearsal" if done[0] == 0 else "")
        if fault.nan_at and done[0] == fault.nan_at - 1:
            before["weights"] = digest_of(model)
            return sft_loss_sum(logits_KV, targets_K) * float("nan")
        return sft_loss_sum(logits_KV, targets_K)

    def progress(now: int, total: int, **figures: float) -> None:
        done[0] = now
        clock.step(now)
        if now == fault.nan_at:
            before["after"] = digest_of(model)
        if now == 6:
            phases.reached("between")

    def on_eval(step, sampler):
        sampler.sample([], max_new_tokens=1)
        return {"acc": 0.0}

    phases.reached("start-up")
    result = train(
        model, sft_loss_sum if not (fault.term or fault.nan_at) else loss, spec, train_set=ROWS, dev_set=DEV_ROWS,
        make_batch=make_batch, plan_epoch=plan_epoch, run_dir=folder, guard={"data": "d1"}, progress=progress,
        stop=phases.stop, on_eval=on_eval, make_sampler=lambda: _TokenByToken(phases), rehearse=not fault.nan_at,
        notice=print,
    )  # fmt: skip
    phases.reached("after end")
    unmoved = before.get("weights") == before.get("after")
    return {"digest": digest_of(model), "steps": result.steps, "unmoved": unmoved, "refused": result.num_refused}


class _Watch(TrainerCallback):
    def __init__(self, clock: Clock, phases: _Phases) -> None:
        self.clock, self.phases = clock, phases

    def on_step_end(self, args, state, control, **kwargs):
        self.clock.step(state.global_step)
        self.phases.reached("between" if state.global_step == 6 else "")


class _Dataset(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, index: int) -> dict:
        return {"row": ROWS[index]}


def _collate(items: list[dict]) -> dict[str, torch.Tensor]:
    chosen = [item["row"] for item in items]
    width = max(len(row.ids) for row in chosen)
    ids = [[*row.ids, *[0] * (width - len(row.ids))] for row in chosen]
    labels = [
        [i if t else -100 for i, t in zip(row.ids, row.trained, strict=True)] + [-100] * (width - len(row.ids))
        for row in chosen
    ]
    mask = [[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in chosen]
    return {k: torch.tensor(v) for k, v in (("input_ids", ids), ("labels", labels), ("attention_mask", mask))}


class _NanTrainer(Trainer):
    """Makes the loss of one step NaN and keeps the weights' digests around it."""

    nan_at, before, phases = 0, "", _Phases("", handled=False)

    def training_step(self, *args, **kwargs):
        if self.state.global_step == self.nan_at - 1:
            self.before = digest_of(self.model)
        return super().training_step(*args, **kwargs)

    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        self.phases.reached("step" if self.state.global_step >= 5 else "")
        return loss * float("nan") if self.state.global_step == self.nan_at - 1 else loss


def hf_trainer(folder: Path, settings: Settings, fault: Fault, clock: Clock) -> dict:
    """transformers' Trainer as its documentation has it: resume from the last checkpoint when there is one, and, where
    SIGTERM comes, its own answer to it (`enable_jit_checkpoint`)."""
    torch.set_num_threads(1)
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=settings.steps, save_steps=settings.save_every, save_total_limit=2,
        per_device_train_batch_size=4, gradient_accumulation_steps=settings.accumulation, learning_rate=1e-2,
        logging_steps=1, report_to=[], use_cpu=True, disable_tqdm=True, seed=0,
        enable_jit_checkpoint=bool(fault.term) or fault.how == SIGNAL,
    )  # fmt: skip
    arguments.remove_unused_columns = False
    phases = _Phases(fault.term, handled=False)
    trainer = _NanTrainer(
        model=_model(settings), args=arguments, train_dataset=_Dataset(), data_collator=_collate,
        callbacks=[_Watch(clock, phases)],
    )  # fmt: skip
    trainer.nan_at, trainer.phases = fault.nan_at, phases
    phases.reached("start-up")
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)))
    phases.reached("after end")
    logged = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    unmoved = bool(fault.nan_at) and trainer.before != "" and all(map(_is_finite, trainer.model.parameters()))
    return {"digest": digest_of(trainer.model), "unmoved": unmoved, "logged": logged, "refused": 0}


def _is_finite(parameter: torch.Tensor) -> bool:
    return bool(torch.isfinite(parameter).all())


TARGETS = {"luthier": luthier, "HF Trainer": hf_trainer}

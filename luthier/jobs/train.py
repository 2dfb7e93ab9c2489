"""Stage train: prove the mask, then fine-tune the adapter; resumes what was interrupted, exactly."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from luthier.adapters.lora import apply_lora
from luthier.adapters.peft_files import save_adapter
from luthier.chat.proof import prove
from luthier.config.load import Project
from luthier.data.pack import epoch_batches, make_batch
from luthier.data.stored import read_encoded, read_rows
from luthier.engine.loop import train as train_loop
from luthier.engine.state import TrainResult
from luthier.errors import TemplateError
from luthier.evaluate.cases import cases_from_rows
from luthier.evaluate.dev_metrics import dev_metrics
from luthier.jobs import console
from luthier.jobs.local import OpenBase, open_base, sampler_of, set_threads
from luthier.jobs.prepare import prepare_stage, schema_of
from luthier.jobs.stage import Stage, run_stage, stage_folder
from luthier.losses.registry import LOSSES
from luthier.models.load import load_model
from luthier.models.packed import PackedModel

VERSION = 1


def train(project: Project) -> None:
    """The verb: prepares the data first when that is needed."""
    opened = open_base(project)
    train_stage(project, opened, prepare_stage(project, opened))


def train_stage(project: Project, opened: OpenBase, prepared: Stage) -> Stage:
    """Trains the adapter (or reuses what stands)."""
    spec = project.spec
    inputs = {
        "adapter": spec.adapter.model_dump(mode="json"),
        "loss": spec.loss.model_dump(mode="json"),
        "train": spec.train.model_dump(mode="json"),
        "model": spec.model.model_dump(mode="json", include={"dtype"}),
        "base": opened.base.digest,
        "prepared": prepared.digest,
    }
    work = stage_folder(project, "train", VERSION, inputs).with_suffix(".work")

    def build(folder: Path) -> dict[str, Any]:
        proof = _prove_mask(opened, prepared)
        result, facts = _train(project, opened, prepared, work, folder / "adapter", inputs)
        for name in ("metrics.jsonl", "trackers", "checkpoints"):
            if (work / name).exists():
                shutil.move(work / name, folder / name)
        shutil.rmtree(work)
        return facts | _figures(result) | {"mask_proof": proof}

    stage = run_stage(project, "train", VERSION, inputs, build)
    facts = stage.facts
    console.line(
        f"{facts['steps']} steps, {facts['tokens']:,} tokens ({facts['trained_tokens']:,} trained) in "
        f"{console.duration(facts['seconds'])}; best step {facts['best_step']}, dev loss {facts['dev_loss']}; "
        f"peak memory {facts['peak_bytes'] / 2**30:.2f} GiB"
    )
    return stage


def _prove_mask(opened: OpenBase, prepared: Stage) -> dict[str, Any]:
    proof = prove(opened.codec, read_rows(prepared.folder, "train"))
    if not proof.passed:
        failed = "; ".join(f"{o.id} {o.detail}" for o in proof.obligations if not o.passed)
        raise TemplateError(
            f"the loss mask of this tokenizer and template is not proved: {failed}",
            hint="`luthier mask` shows the tokens and the table of obligations",
        )
    console.line(f"loss mask proved on this run's rows: {', '.join(o.id for o in proof.obligations)}")
    return proof.as_json()


def _train(
    project: Project, opened: OpenBase, prepared: Stage, work: Path, adapter_folder: Path, guard: dict[str, Any]
) -> tuple[TrainResult, dict[str, Any]]:
    spec = project.spec
    set_threads(project)
    model = load_model(opened.base.folder, dtype=spec.model.dtype)
    if model.note:
        console.warn(model.note)
    adapted = apply_lora(model, spec.adapter, seed=spec.train.seed)
    share = 100 * adapted.share_trainable
    console.line(f"trainable: {adapted.num_trainable:,} parameters, {share:.2f}% of the model ({spec.adapter.method})")
    with console.progress_bar("training") as progress, _stop_flag() as stop:
        result = train_loop(
            model,
            LOSSES[spec.loss.kind],
            spec.train,
            train_set=read_encoded(prepared.folder, "train"),
            dev_set=read_encoded(prepared.folder, "dev"),
            make_batch=make_batch,
            plan_epoch=epoch_batches,
            run_dir=work,
            on_eval=_task_metrics_on_dev(project, prepared),
            make_sampler=lambda: _sampler(model, opened, project),
            guard=guard,
            progress=progress,
            stop=stop,
        )
    save_adapter(model, adapter_folder, spec.adapter, opened.base.name)
    return result, {"num_trainable": adapted.num_trainable, "share_trainable": adapted.share_trainable}


def _sampler(model: PackedModel, opened: OpenBase, project: Project) -> Any:
    return sampler_of(model, opened.codec, "in training", batch_size=project.spec.evaluate.batch_size)


def _task_metrics_on_dev(project: Project, prepared: Stage) -> Callable[[int, Any], dict[str, float]] | None:
    """Grades answers to the first train.eval_task_rows dev rows at each evaluation."""
    num_rows = project.spec.train.eval_task_rows
    if not num_rows:
        return None
    schema = schema_of(project)
    cases = cases_from_rows(read_rows(prepared.folder, "dev")[:num_rows], schema)
    return lambda step, sampler: dev_metrics(sampler, cases, project.spec.evaluate, schema)


@contextmanager
def _stop_flag() -> Iterator[Callable[[], bool]]:
    """Inside, the first SIGINT or SIGTERM only asks the loop to save and stop; a second one stops at once."""
    asked: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: object) -> None:
        asked.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)
        console.line("stopping after this step; press again to stop at once", "yellow")

    for number in before:
        signal.signal(number, ask)
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _figures(result: TrainResult) -> dict[str, Any]:
    losses = {record["step"]: record["loss"] for record in result.history}
    loss = losses.get(result.best_step)
    return {
        "status": result.status,
        "steps": result.steps,
        "best_step": result.best_step,
        "dev_loss": None if loss is None else round(loss, 5),
        "tokens": result.tokens,
        "trained_tokens": result.trained_tokens,
        "seconds": round(result.seconds, 3),
        "peak_bytes": result.peak_bytes,
        "history": [dict(record) for record in result.history],
    }

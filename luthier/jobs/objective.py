"""What a run's objective needs beyond rows and model: labels by row, a reference, a teacher, a score head.

`read_examples` and `check_objective` refuse before any weight is loaded; `open_objective` builds the loss on the
adapted model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.adapters.handle import AdaptedModel
from luthier.bases.resolve import model_in, resolve_base
from luthier.bases.tokenizer import Tokenizer
from luthier.config.load import Project
from luthier.config.loss import LossSpec
from luthier.data.pack import LayOut, at_last_token, with_columns
from luthier.data.sequences import Mismatched, read_number, rows_become
from luthier.data.stored import read_encoded, read_rows
from luthier.errors import ConfigError, DataError
from luthier.jobs import console
from luthier.jobs.opened import OpenBase
from luthier.jobs.pins import pin_all
from luthier.jobs.reference import reference_stage
from luthier.jobs.reward_model import check_reward_model
from luthier.jobs.stage import Stage
from luthier.losses.kto import LABEL
from luthier.losses.loss import Loss
from luthier.losses.registry import make_loss, needs_of
from luthier.losses.scores import CLASS, MARGIN, NUMBER
from luthier.losses.sequences import REFERENCE
from luthier.losses.tokens import SecondModel
from luthier.models.load import load_model
from luthier.models.other import TransformersModel
from luthier.types import Batch, Row, RowSet

Columns = dict[str, dict[str, tuple[float, ...]]]


@dataclass(frozen=True)
class Examples:
    """The rows of a run and what each is labelled with. columns: see `data.pack.with_columns`; classes: names of the
    scores of a classifier.
    """

    train: RowSet
    dev: RowSet
    columns: Columns = field(default_factory=dict)
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class OpenObjective:
    """The loss, the layout of its batches, and digests that a resumed run must find again."""

    loss: Loss
    lay_out: LayOut
    guard: Mapping[str, Any]


def check_objective(project: Project, opened: OpenBase) -> None:
    """Raises ConfigError for a teacher that cannot teach this base, or a reward model that cannot judge it."""
    check_reward_model(project, opened)
    folder = teacher_folder(project)
    if folder is None:
        return
    if not (folder / "tokenizer.json").is_file():
        raise ConfigError(
            f"loss.teacher: {folder} is no model folder (no tokenizer.json)",
            hint="give a local folder, or the output_dir of a project after `luthier build`",
        )
    theirs, ours = Tokenizer.load(folder), opened.tokenizer
    if theirs.vocabulary != ours.vocabulary:
        differ = theirs.vocabulary.items() ^ ours.vocabulary.items()
        raise ConfigError(
            f"loss.teacher: {folder} has another tokenizer than the base ({len(differ):,} entries differ, "
            f"{theirs.vocab_size:,} against {ours.vocab_size:,} words): its distributions are over other words",
            hint="take a teacher of the same family",
        )


def teacher_folder(project: Project) -> Path | None:
    """Where loss.teacher lies; of a project's output folder, the one build in it."""
    teacher = project.spec.loss.teacher
    return None if teacher is None else model_in(project.folder / teacher)


def teacher_inputs(project: Project) -> dict[str, str]:
    """What a run depends on beside the inputs of every run, where it has a teacher."""
    folder = teacher_folder(project)
    return {} if folder is None else {"teacher": resolve_base(str(folder)).digest}


def check_answers(project: Project) -> None:
    """Raises ConfigError where nothing could be merged, exported or asked: a score head gives numbers, no answers."""
    kind = project.spec.loss.kind
    if project.spec.loss.has_score_head:
        raise ConfigError(
            f"loss.kind {kind} trains a score head: there is no model that answers, so no build and no verdict",
            hint="luthier train ends with an adapter folder that PEFT loads onto AutoModelForSequenceClassification",
        )


def read_examples(project: Project, prepared: Stage) -> Examples:
    """The prepared rows as this objective sees them. Raises DataError for labels that cannot teach anything."""
    loss, folder = project.spec.loss, prepared.folder
    train, dev = read_encoded(folder, "train"), read_encoded(folder, "dev")
    make = _LABELS.get(loss.kind)
    if make is None:
        return Examples(train, dev)
    columns, classes = make(loss, {split: read_rows(folder, split) for split in ("train", "dev")})
    if loss.sequences == "labelled":
        return Examples(Mismatched(train), Mismatched(dev), columns)
    return Examples(train, dev, columns, classes)


Labels = tuple[Columns, tuple[str, ...]]
RowsOf = Mapping[str, list[Row]]


def _judged(_: LossSpec, rows: RowsOf) -> Labels:
    labels = {row.label for row in rows["train"]}
    if len(labels) == 1:
        raise DataError(
            f"every training row is labelled {str(labels.pop()).lower()}: kto learns from good and bad answers",
            hint="add rows of the other kind, or use loss.kind: sft on the good ones",
        )
    return {LABEL: _by_row(rows, lambda row: float(bool(row.label)))}, ()


def _margins(loss: LossSpec, rows: RowsOf) -> Labels:
    column = loss.margin_column
    if column is None:
        return {}, ()
    return {MARGIN: _by_row(rows, lambda row: read_number(row.columns[column], column))}, ()


def _classes(_: LossSpec, rows: RowsOf) -> Labels:
    classes = tuple(sorted({row.answer for row in rows["train"]}))
    if len(classes) < 2:
        raise DataError(
            f"every training row has the class {rows['train'][0].answer!r}", hint="add rows of another class"
        )
    unknown = next((row for row in rows["dev"] if row.answer not in classes), None)
    if unknown is not None:
        raise DataError(
            f"{unknown.source}:{unknown.line}: the class {unknown.answer!r} stands in the dev split and in no training "
            "row, so it cannot be learnt",
            hint="add rows of it, or set data.stratify_by to the column of the class",
        )
    place = {name: float(index) for index, name in enumerate(classes)}
    return {CLASS: _by_row(rows, lambda row: place[row.answer])}, classes


def _numbers(_: LossSpec, rows: RowsOf) -> Labels:
    return {NUMBER: _by_row(rows, lambda row: read_number(row.answer, "the answer"))}, ()


_LABELS: dict[str, Callable[[LossSpec, RowsOf], Labels]] = {
    "kto": _judged,
    "reward": _margins,
    "classify": _classes,
    "regress": _numbers,
}


def _by_row(rows: RowsOf, value: Callable[[Row], float]) -> dict[str, tuple[float, ...]]:
    return {row.id: (value(row),) for part in rows.values() for row in part}


class AdaptersOff:
    """The base inside an adapted model: what a tune is compared with."""

    def __init__(self, adapted: AdaptedModel) -> None:
        self.adapted = adapted

    def hidden(self, batch: Batch) -> Tensor:
        """Hidden states of the base at batch.keep_K, without gradients."""
        with self.adapted.disable() as model, torch.no_grad():
            return model.hidden(batch)  # type: ignore[operator]

    def head(self, hidden_KD: Tensor) -> Tensor:
        """Logits of the base."""
        with self.adapted.disable() as model, torch.no_grad():
            return model.head(hidden_KD)  # type: ignore[operator]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.adapted.model, name)


def add_score_head(model: Any, num_scores: int, seed: int) -> nn.Linear:
    """Gives `model` its `score` layer (float32, trained). One seed gives one set of start values."""
    _refuse_others(model, "a score head")
    head = nn.Linear(model.config["hidden_size"], num_scores, bias=False, dtype=torch.float32)
    nn.init.normal_(head.weight, std=0.02, generator=torch.Generator().manual_seed(seed))
    model.score = head.to(model.device)
    return head


def add_value_head(model: Any) -> nn.Linear:
    """Gives `model` its `value_head` (float32, trained), which expects nothing of any answer yet."""
    _refuse_others(model, "a value head")
    head = nn.Linear(model.config["hidden_size"], 1, dtype=torch.float32)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    model.value_head = head.to(model.device)
    return head


def _refuse_others(model: Any, what: str) -> None:
    if isinstance(model, TransformersModel):
        raise ConfigError(
            f"{what} needs luthier's own decoder: {model.note}", hint="choose a base of a known architecture"
        )


def open_objective(
    project: Project,
    opened: OpenBase,
    prepared: Stage,
    adapted: AdaptedModel,
    examples: Examples,
    lay_out: LayOut,
    dtype: str,
) -> OpenObjective:
    """The loss on an adapted model; computes or finds the reference where it needs one."""
    spec, model = project.spec.loss, adapted.model
    columns, guard = dict(examples.columns), {}
    second: SecondModel | None = None
    if spec.has_score_head:
        add_score_head(model, max(1, len(examples.classes)), project.spec.train.seed)
        plain = lay_out
        lay_out = lambda rows: at_last_token(plain(rows))  # noqa: E731
    if spec.has_value_head:
        add_value_head(model)
    if spec.kl_to_base:
        second = AdaptersOff(adapted)
    elif (folder := teacher_folder(project)) is not None:
        second = load_model(folder, dtype="float32").eval()
        console.line(f"teacher: {folder}, {second.num_parameters:,} parameters")
    loss = make_loss(spec, second)
    if REFERENCE in needs_of(loss):
        inputs = {
            "base": opened.base.digest, "prepared": prepared.digest, "dtype": dtype, "loss": rows_become(spec)
        }  # fmt: skip
        sets = {"train": examples.train, "dev": examples.dev}
        stage, columns[REFERENCE] = reference_stage(
            project, AdaptersOff(adapted), inputs, sets, lay_out,
            pins=pin_all(project, opened, prepared), parents={"prepared": prepared},
        )  # fmt: skip
        guard = {"reference": stage.digest}
    return OpenObjective(loss, with_columns(lay_out, columns) if columns else lay_out, guard)

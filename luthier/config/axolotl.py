"""An Axolotl configuration as values of our project file, with every key accounted for.

Each key ends in one of four ways: it becomes a key of ours; it is not needed here, and why; it has no counterpart, and
what happens instead; or it is unknown (a typing error, which Axolotl passes over). What changes the very thing that is
trained (the objective, the data, full weights where only adapters are known) is refused. Whether this version knows a
value is asked of the specs themselves, never of a list here.
Source: Axolotl's configuration reference and schemas (axolotl-ai-cloud/axolotl, docs/ and utils/schemas).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from luthier.config.axolotl_data import Datasets, read_datasets
from luthier.config.axolotl_keys import LOST, LOST_PREFIXES, NOT_NEEDED, NOT_NEEDED_PREFIXES, REFUSED
from luthier.config.project import ProjectSpec

DEFAULT_SEQUENCE_LEN = 512
"""Axolotl's own defaults are used where its file is silent."""


@dataclass(frozen=True)
class Note:
    """What became of one key. kind: kept, not needed, no counterpart, unknown or refused."""

    key: str
    line: int
    kind: str
    text: str


@dataclass
class Imported:
    """values: our dotted key -> value; origins: our dotted key -> the keys it came from; notes: one a key of theirs."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)

    def of_kind(self, kind: str) -> list[Note]:
        """The notes of one kind, in the order of the file."""
        return [note for note in self.notes if note.kind == kind]


def accepts(dotted: str, value: Any) -> bool:
    """Does the project file of this version know the key, and take this value?"""
    model: Any = ProjectSpec
    *sections, leaf = dotted.split(".")
    for section in sections:
        inner = model.model_fields.get(section) if isinstance(model, type) and issubclass(model, BaseModel) else None
        model = inner.annotation if inner else None
    spec = model.model_fields.get(leaf) if isinstance(model, type) and issubclass(model, BaseModel) else None
    if spec is None:
        return False
    try:
        TypeAdapter(spec.rebuild_annotation()).validate_python(value)
    except ValidationError:
        return False
    return True


class _Reader:
    """Takes keys out of the raw file one by one, and notes what became of each."""

    def __init__(self, raw: dict[str, Any], lines: dict[str, int]) -> None:
        self.left = {key: value for key, value in raw.items() if value is not None}
        self.lines = lines
        self.done = Imported()
        for key in raw.keys() - self.left.keys():
            self.note(key, "not needed", "it is empty")

    def note(self, key: str, kind: str, text: str) -> None:
        """Writes down what became of a key."""
        self.done.notes.append(Note(key, self.lines.get(key, 0), kind, text))

    def take(self, key: str, default: Any = None) -> Any:
        """The value of a key, which is then no longer left over."""
        return self.left.pop(key, default)

    def keep(self, key: str, dotted: str, value: Any, words: str = "") -> None:
        """`key` becomes `dotted`; where this version does not know that value, it has no counterpart."""
        if not accepts(dotted, value):
            self.lose(key, f"{dotted} does not take {value!r}; its default holds")
            return
        self.done.values[dotted] = value
        where = f"{key} (line {self.lines[key]})" if key in self.lines else key
        where += f": {words}" if words else ""
        before = self.done.origins.get(dotted)
        self.done.origins[dotted] = f"{before}, {where}" if before else where
        self.note(key, "kept", f"{dotted}: {words}" if words else dotted)

    def need_not(self, key: str, why: str) -> None:
        """`key` has nothing to say here."""
        self.note(key, "not needed", why)

    def lose(self, key: str, instead: str) -> None:
        """`key` has no counterpart."""
        self.note(key, "no counterpart", instead)

    def refuse(self, key: str, why: str) -> None:
        """What `key` asks for would not be what is trained."""
        self.note(key, "refused", why)


def import_axolotl(raw: dict[str, Any], lines: dict[str, int], *, is_local: Callable[[str], bool]) -> Imported:
    """Our values for a parsed Axolotl file. lines: of its dotted keys. is_local: is there such a file or folder here?
    (otherwise a name of two parts is a data set of the hub)."""
    reader = _Reader(raw, lines)
    for section in (_model, _data, _adapter, _batch, _schedule, _optimizer, _intervals, _trackers):
        section(reader, is_local)
    for key, value in list(reader.left.items()):
        _rest(reader, key, value)
    reader.done.notes.sort(key=lambda note: note.line)
    return reader.done


def _model(r: _Reader, is_local: Callable[[str], bool]) -> None:
    base = r.take("base_model", "")
    hint = "" if is_local(base) else "give the path of a downloaded folder, or set model.allow_hub: true"
    r.keep("base_model", "model.base", base, hint)
    wishes = [key for key in ("load_in_4bit", "load_in_8bit") if r.take(key)]
    wish = wishes[0] if wishes else None
    for key in ("bf16", "bfloat16"):
        given = r.take(key)
        if given is not None:
            r.need_not(key, "frozen weights take model.dtype, adapters are float32, so nothing is scaled")
    if wish == "load_in_4bit" and accepts("model.dtype", "nf4"):
        r.keep(wish, "model.dtype", "nf4")
    elif wish == "load_in_4bit":
        r.keep(wish, "model.dtype", "int8", "this version holds a frozen base in 8 bits at least")
    elif wish:
        r.keep(wish, "model.dtype", "int8")
    for key in ("load_in_4bit", "load_in_8bit"):
        if key in r.lines and key != wish and key not in {note.key for note in r.done.notes}:
            r.need_not(key, "off")


def _data(r: _Reader, is_local: Callable[[str], bool]) -> None:
    sequence_len = r.take("sequence_len", DEFAULT_SEQUENCE_LEN)
    r.keep("sequence_len", "train.sequence_len", sequence_len)
    for key, role in (("datasets", "train"), ("pretraining_dataset", "train"), ("test_datasets", "test")):
        given = r.take(key)
        if given is None:
            continue
        found: Datasets = read_datasets(given if isinstance(given, list) else [given], is_local)
        for text in found.refused:
            r.refuse(key, text)
        for text in found.lost:
            r.lose(key, text)
        r.keep(key, f"data.{role}", found.paths)
        if role == "train":
            for name, value in found.settings.items():
                r.keep(key, f"data.{name}", value)
    if "data.train" not in r.done.values:
        r.refuse("datasets", "no data set is named")
    share = r.take("val_set_size", 0.0)
    if isinstance(share, (int, float)) and 0 < share < 1:
        r.keep("val_set_size", "data.split", {"train": round(1 - share, 6), "dev": share, "test": 0.0})
    elif share:
        r.lose("val_set_size", "a number of rows is not read: the default shares of data.split hold")
    else:
        r.keep("val_set_size", "data.split", {"train": 1.0, "dev": 0.0, "test": 0.0})
        r.done.values["data.allow_no_dev"] = True
    if r.take("dataset_exact_deduplication"):
        r.keep("dataset_exact_deduplication", "data.near_duplicate_threshold", 1.0)
    r.done.values["data.over_length"] = "quarantine"
    r.done.origins["data.over_length"] = "Axolotl drops rows that are too long; here they are set aside by name"
    if r.take("train_on_inputs"):
        r.refuse("train_on_inputs", "only answers are trained; type completion trains all of a text")
    elif "train_on_inputs" in r.lines:
        r.need_not("train_on_inputs", "only answers are trained")


def _adapter(r: _Reader, is_local: Callable[[str], bool]) -> None:
    method = r.take("adapter")
    dora = r.take("peft_use_dora")
    if method in (None, ""):
        if accepts("adapter.method", "full"):
            r.keep("adapter", "adapter.method", "full")
        else:
            r.refuse("adapter", "without an adapter all weights are trained, which this version does not do")
        for key in [key for key in r.left if key.startswith("lora_")]:
            r.take(key)
            r.need_not(key, "there is no adapter")
        return
    wanted = {"lora": "dora", "qlora": "qdora"}.get(method, method) if dora else method
    if dora:
        r.keep("peft_use_dora", "adapter.method", wanted)
    if method == "qlora" and not accepts("adapter.method", "qlora"):
        r.keep("adapter", "adapter.method", "lora", "QLoRA is LoRA on a base of few bits: model.dtype")
    elif accepts("adapter.method", wanted):
        r.keep("adapter", "adapter.method", wanted)
    else:
        r.refuse("adapter", f"{method} is no method of this version")
    for key in ("lora_r", "lora_alpha", "lora_dropout"):
        if key in r.left:
            r.keep(key, f"adapter.{key}", r.take(key))
    linear, targets = r.take("lora_target_linear"), r.take("lora_target_modules")
    if isinstance(targets, list):
        r.keep("lora_target_modules", "adapter.lora_target_modules", targets)
    elif targets not in (None, "all-linear"):
        r.lose("lora_target_modules", "a pattern is not read: every linear layer gets an adapter (all-linear)")
    if linear is not None or targets == "all-linear":
        key = "lora_target_linear" if linear is not None else "lora_target_modules"
        if linear and not isinstance(targets, list):
            r.keep(key, "adapter.lora_target_modules", "all-linear")
        elif isinstance(targets, list) or targets:
            r.need_not(key, "lora_target_modules says it")
        else:
            r.lose(key, "no layers are named: every linear layer gets an adapter (all-linear)")
    for key, dotted in (
        ("peft_use_rslora", "adapter.use_rslora"),
        ("loraplus_lr_ratio", "adapter.loraplus_lr_ratio"),
        ("lora_modules_to_save", "adapter.modules_to_save"),
    ):
        if key in r.left:
            r.keep(key, dotted, r.take(key))


def _batch(r: _Reader, is_local: Callable[[str], bool]) -> None:
    rows, steps = r.take("micro_batch_size", 1), r.take("gradient_accumulation_steps")
    total = r.take("batch_size")
    if total and not steps:
        steps = max(1, total // rows)
        r.keep("batch_size", "train.gradient_accumulation_steps", steps)
    elif total:
        r.need_not("batch_size", "micro_batch_size and gradient_accumulation_steps say it")
    tokens = rows * r.done.values.get("train.sequence_len", DEFAULT_SEQUENCE_LEN)
    r.keep("micro_batch_size", "train.micro_batch_tokens", tokens, f"{rows} x sequence_len, as rows are packed")
    if steps and "train.gradient_accumulation_steps" not in r.done.values:
        r.keep("gradient_accumulation_steps", "train.gradient_accumulation_steps", steps)
    if "sample_packing" in r.left:
        if r.take("sample_packing"):
            r.need_not("sample_packing", "rows are always packed, each seeing itself alone")
        else:
            r.lose("sample_packing", "rows are packed up to train.micro_batch_tokens, so a step may hold more of them")


def _schedule(r: _Reader, is_local: Callable[[str], bool]) -> None:
    epochs = r.take("num_epochs", 1)
    r.keep(
        "num_epochs", "train.num_epochs", max(1, round(epochs)), "" if epochs == round(epochs) else f"{epochs} rounded"
    )
    steps = r.take("max_steps")
    if steps and steps > 0:
        r.keep("max_steps", "train.max_steps", steps)
    kind = r.take("lr_scheduler", "cosine")
    if kind in ("constant_with_warmup", "constant", "linear", "cosine"):
        r.keep("lr_scheduler", "train.lr_scheduler", kind.removesuffix("_with_warmup"))
    else:
        r.lose("lr_scheduler", f"{kind} is not known: linear decay")
    floor = r.take("cosine_min_lr_ratio")
    if floor is not None and 0 <= floor < 1 and kind == "cosine":
        r.keep("cosine_min_lr_ratio", "train.lr_min_ratio", floor)
    elif floor is not None:
        r.lose("cosine_min_lr_ratio", "only a share below 1 of a cosine schedule has a counterpart")
    ratio, warmup = r.take("warmup_ratio"), r.take("warmup_steps")
    if warmup is not None and 0 < warmup < 1:
        r.keep("warmup_steps", "train.warmup_ratio", warmup, "a share of the steps")
    elif warmup is not None and steps and 0 <= warmup < steps:
        r.keep("warmup_steps", "train.warmup_ratio", round(warmup / steps, 6), f"{warmup} of {steps} steps")
    elif warmup is not None:
        r.lose("warmup_steps", "the number of steps is not known before the data is packed: train.warmup_ratio 0.05")
    if ratio is not None:
        r.keep("warmup_ratio", "train.warmup_ratio", ratio)
    elif kind == "constant":
        r.done.values.setdefault("train.warmup_ratio", 0.0)


_ADAMW = ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_bnb_8bit", "adamw_8bit", "adamw_torch_8bit",
          "paged_adamw_8bit", "paged_adamw_32bit", "adamw_torch_4bit", "adamw_apex_fused", "ao_adamw_fp8")  # fmt: skip


def _optimizer(r: _Reader, is_local: Callable[[str], bool]) -> None:
    name = r.take("optimizer")
    if name in _ADAMW:
        r.need_not("optimizer", "AdamW it is, its states in float32")
    elif name is not None:
        r.lose("optimizer", f"{name} is not known: AdamW")
    for key, dotted in (
        ("learning_rate", "train.learning_rate"),
        ("weight_decay", "train.weight_decay"),
        ("adam_beta1", "train.adam_beta1"),
        ("adam_beta2", "train.adam_beta2"),
        ("adam_epsilon", "train.adam_epsilon"),
        ("max_grad_norm", "train.max_grad_norm"),
        ("seed", "train.seed"),
        ("neftune_noise_alpha", "loss.neftune_alpha"),
    ):
        if key in r.left:
            r.keep(key, dotted, r.take(key))


def _intervals(r: _Reader, is_local: Callable[[str], bool]) -> None:
    for key, dotted in (
        ("logging_steps", "train.logging_steps"),
        ("eval_steps", "train.eval_steps"),
        ("save_steps", "train.save_steps"),
        ("save_total_limit", "train.save_total_limit"),
        ("early_stopping_patience", "train.early_stopping_patience"),
        ("output_dir", "output_dir"),
    ):
        if key in r.left:
            r.keep(key, dotted, r.take(key))
    for key, ours in (("evals_per_epoch", "eval_steps"), ("saves_per_epoch", "save_steps")):
        times = r.take(key)
        if times == 1:
            r.need_not(key, f"once an epoch is what happens without train.{ours}")
        elif times is not None:
            r.lose(key, f"once an epoch, or every train.{ours} steps")


def _trackers(r: _Reader, is_local: Callable[[str], bool]) -> None:
    names = {"wandb_project": "wandb", "use_wandb": "wandb", "use_tensorboard": "tensorboard", "use_mlflow": "mlflow",
             "mlflow_tracking_uri": "mlflow", "trackio_project_name": "trackio", "use_swanlab": "swanlab"}  # fmt: skip
    trackers: list[str] = []
    for key, name in names.items():
        given = r.take(key)
        if given is False:
            r.need_not(key, "off")
        elif given:
            trackers += [name] if name not in trackers else []
            r.keep(
                key, "train.trackers", list(trackers), "the project's name and the account come from its environment"
            )


def _rest(r: _Reader, key: str, value: Any) -> None:
    """A key that no section took: known to be needless, known to be lost, or unknown."""
    off = value in (False, 0, "", [], {})
    prefixed = next((text for prefix, text in LOST_PREFIXES.items() if key.startswith(prefix)), None)
    needless = next((text for prefix, text in NOT_NEEDED_PREFIXES.items() if key.startswith(prefix)), None)
    if key in NOT_NEEDED or (needless and key not in LOST):
        r.need_not(key, NOT_NEEDED.get(key) or str(needless))
    elif off and (key in LOST or key in REFUSED or prefixed):
        r.need_not(key, "off")
    elif key == "rl" and value != "grpo" and accepts("loss.kind", value):  # its rewards there are Python
        r.keep(key, "loss.kind", value)
    elif key in REFUSED:
        r.refuse(key, REFUSED[key])
    elif key in LOST or prefixed:
        r.lose(key, LOST.get(key) or str(prefixed))
    else:
        known = [
            *NOT_NEEDED,
            *LOST,
            *REFUSED,
            "sequence_len",
            "micro_batch_size",
            "learning_rate",
            "lora_r",
            "datasets",
        ]
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
        r.note(key, "unknown", f"did you mean {near[0]}? it is passed over" if near else "it is passed over")

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
from typing import Any

from luthier.config.axolotl_data import Datasets, read_datasets
from luthier.config.axolotl_keys import LOST, LOST_PREFIXES, NOT_NEEDED, NOT_NEEDED_PREFIXES, REFUSED
from luthier.config.axolotl_objective import read_objective
from luthier.config.axolotl_reader import Imported, Reader, accepts

DEFAULT_SEQUENCE_LEN = 512
"""Axolotl's own defaults are used where its file is silent."""


def import_axolotl(raw: dict[str, Any], lines: dict[str, int], *, is_local: Callable[[str], bool]) -> Imported:
    """Our values for a parsed Axolotl file. lines: of its dotted keys. is_local: is there such a file or folder here?
    (otherwise a name of two parts is a data set of the hub)."""
    reader = Reader({str(key): value for key, value in raw.items()}, lines)
    for section in (_model, _objective, _data, _adapter, _batch, _schedule, _optimizer, _intervals, _trackers):
        section(reader, is_local)
    for key, value in list(reader.left.items()):
        _rest(reader, key, value)
    reader.done.notes.sort(key=lambda note: note.line)
    return reader.done


def _model(r: Reader, is_local: Callable[[str], bool]) -> None:
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


def _objective(r: Reader, is_local: Callable[[str], bool]) -> None:
    read_objective(r)


def _data(r: Reader, is_local: Callable[[str], bool]) -> None:
    r.keep("sequence_len", "train.sequence_len", r.number("sequence_len", DEFAULT_SEQUENCE_LEN, whole=True), must=True)
    objective = r.done.values.get("loss.kind", "sft")
    for key, role in (("datasets", "train"), ("pretraining_dataset", "train"), ("test_datasets", "test")):
        given = r.take(key)
        if given is None:
            continue
        found: Datasets = read_datasets(given if isinstance(given, list) else [given], is_local, objective)
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
    share = r.number("val_set_size", 0.0)
    if share < 0:
        r.refuse("val_set_size", f"expected a share or a number of rows, got {share}")
    elif 0 < share < 1:
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
    inputs_too = r.take("train_on_inputs")
    if inputs_too and r.done.values.get("data.format") == "text":
        r.need_not("train_on_inputs", "all of a text is trained")
    elif inputs_too:
        r.refuse("train_on_inputs", "only answers are trained; type completion trains all of a text")
    elif "train_on_inputs" in r.lines:
        r.need_not("train_on_inputs", "only answers are trained")


def _adapter(r: Reader, is_local: Callable[[str], bool]) -> None:
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
        if r.take("unfrozen_parameters"):
            r.refuse("unfrozen_parameters", "all weights would be trained: see adapter.method layers and head instead")
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
        r.keep_number(key, f"adapter.{key}", whole=key == "lora_r")
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


def _batch(r: Reader, is_local: Callable[[str], bool]) -> None:
    rows, steps = r.number("micro_batch_size", 1, whole=True), r.number("gradient_accumulation_steps", whole=True)
    total = r.number("batch_size", whole=True)
    if rows < 1:
        r.refuse("micro_batch_size", f"expected 1 or more, got {rows}")
        return
    if total and not steps:
        steps = max(1, total // rows)
        r.keep("batch_size", "train.gradient_accumulation_steps", steps)
    elif total:
        r.need_not("batch_size", "micro_batch_size and gradient_accumulation_steps say it")
    tokens = rows * r.done.values.get("train.sequence_len", DEFAULT_SEQUENCE_LEN)
    r.keep("micro_batch_size", "train.micro_batch_tokens", tokens, f"{rows} x sequence_len, as rows are packed")
    if steps is not None and "train.gradient_accumulation_steps" not in r.done.values:
        r.keep("gradient_accumulation_steps", "train.gradient_accumulation_steps", steps, must=True)
    if "sample_packing" in r.left:
        if r.take("sample_packing"):
            r.need_not("sample_packing", "rows are always packed, each seeing itself alone")
        else:
            r.lose("sample_packing", "rows are packed up to train.micro_batch_tokens, so a step may hold more of them")


def _schedule(r: Reader, is_local: Callable[[str], bool]) -> None:
    epochs = r.number("num_epochs", 1)
    if epochs <= 0:
        r.refuse("num_epochs", f"expected more than 0, got {epochs}")
    else:
        words = "" if epochs == round(epochs) else f"{epochs} rounded"
        r.keep("num_epochs", "train.num_epochs", max(1, round(epochs)), words)
    steps = r.number("max_steps", whole=True)
    if steps and steps > 0:
        r.keep("max_steps", "train.max_steps", steps)
    elif steps is not None:
        r.need_not("max_steps", "no limit")
    _warmup(r, str(r.take("lr_scheduler", "cosine")), steps or 0)


def _warmup(r: Reader, kind: str, steps: int) -> None:
    if kind in ("constant_with_warmup", "constant", "linear", "cosine"):
        r.keep("lr_scheduler", "train.lr_scheduler", kind.removesuffix("_with_warmup"))
    else:
        r.lose("lr_scheduler", f"{kind} is not known: linear decay")
    floor = r.number("cosine_min_lr_ratio")
    if floor is not None and 0 <= floor < 1 and kind == "cosine":
        r.keep("cosine_min_lr_ratio", "train.lr_min_ratio", floor)
    elif floor is not None:
        r.lose("cosine_min_lr_ratio", "only a share below 1 of a cosine schedule has a counterpart")
    ratio, warmup = r.number("warmup_ratio"), r.number("warmup_steps")
    if warmup is not None and warmup < 0:
        r.refuse("warmup_steps", f"expected 0 or more, got {warmup}")
    elif warmup is not None and 0 < warmup < 1:
        r.keep("warmup_steps", "train.warmup_ratio", warmup, "a share of the steps")
    elif warmup is not None and steps and 0 <= warmup < steps:
        r.keep("warmup_steps", "train.warmup_ratio", round(warmup / steps, 6), f"{warmup} of {steps} steps")
    elif warmup is not None:
        r.lose("warmup_steps", "the number of steps is not known before the data is packed: train.warmup_ratio 0.05")
    if ratio is not None:
        r.keep("warmup_ratio", "train.warmup_ratio", ratio, must=True)
    elif kind == "constant":
        r.done.values.setdefault("train.warmup_ratio", 0.0)


_ADAMW = ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_bnb_8bit", "adamw_8bit", "adamw_torch_8bit",
          "paged_adamw_8bit", "paged_adamw_32bit", "adamw_torch_4bit", "adamw_apex_fused", "ao_adamw_fp8")  # fmt: skip


def _optimizer(r: Reader, is_local: Callable[[str], bool]) -> None:
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
        ("neftune_noise_alpha", "loss.neftune_alpha"),
    ):
        r.keep_number(key, dotted)
    r.keep_number("seed", "train.seed", whole=True)


def _intervals(r: Reader, is_local: Callable[[str], bool]) -> None:
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


def _trackers(r: Reader, is_local: Callable[[str], bool]) -> None:
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


def _rest(r: Reader, key: str, value: Any) -> None:
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

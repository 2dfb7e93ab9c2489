"""Adapter folders in PEFT's format: `adapter_config.json` + `adapter_model.safetensors`. PeftModel.from_pretrained
and vLLM read what is written here, and folders that PEFT wrote are read back. A key too many or too few is an error,
never a warning: loaders that shrug it off serve the base and nobody notices (peft#2115, verl#7061).

Every low-rank method but VeRA is written as a LoRA with a rank and alpha for each module: what a PiSSA or an AdaLoRA
ends with is one. `luthier.json` beside it says what PEFT's config cannot: that the base was rounded to 4 bits, or the
keys of config.json that were other ones (a longer context). A method that PEFT does not have (full, layers, head) has
luthier.json alone, and the trained tensors under their own names.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from luthier.adapters.adalora import AdaLoraLinear
from luthier.adapters.dora import DoraLinear
from luthier.adapters.handle import AdaptedModel
from luthier.adapters.lora import LoraLinear, LowRankModel
from luthier.adapters.vera import VeraLinear
from luthier.config.adapter_targets import HEADS
from luthier.errors import ArtifactError
from luthier.store.pickles import scan_folder
from luthier.store.safetensors_file import header_problem

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
OWN_FILE = "luthier.json"
PREFIX = "base_model.model."


def save_adapter(
    adapted: AdaptedModel, folder: Path, base_name: str, *, base_config: Mapping[str, Any] | None = None
) -> None:
    """Writes what was trained into `folder` (created when missing). `base_name` goes into the config for people;
    base_config: keys of config.json in which the base that was trained on differs from the one of that name.

    Raises ArtifactError for a model on which nothing is trained.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not adapted.trained():
        raise ArtifactError("this model carries no adapter, nothing to save")
    spec, own = adapted.spec, {}
    found = _low_rank(adapted) if isinstance(adapted, LowRankModel) else adapted.as_peft()
    if found is not None:
        config, tensors = found
        shared = {"base_model_name_or_path": base_name, "task_type": "CAUSAL_LM", "inference_mode": True}
        (folder / CONFIG_FILE).write_text(json.dumps(config | shared, indent=2) + "\n", encoding="utf-8")
    else:
        tensors = {name: on_disk(parameter) for name, parameter in adapted.trained().items()}
        own["base"] = base_name
    if is_nf4(adapted.model):
        own["base_weights"] = "nf4"
    if base_config:
        own["base_config"] = dict(base_config)
    if own:
        own = {"method": spec.method, **own}
        (folder / OWN_FILE).write_text(json.dumps(own, indent=2) + "\n", encoding="utf-8")
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def peft_reads(folder: Path) -> bool:
    """Whether PEFT loads this folder onto a plain base: it has the method, and the base is not rounded under it."""
    own = read_json(folder / OWN_FILE) if (folder / OWN_FILE).is_file() else {}
    return (folder / CONFIG_FILE).is_file() and "base_weights" not in own


def check_base(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises ArtifactError for a base whose config.json is another one than the adapter of `folder` was trained on."""
    own = read_json(folder / OWN_FILE) if (folder / OWN_FILE).is_file() else {}
    for key, value in own.get("base_config", {}).items():
        if config.get(key) != value:
            raise ArtifactError(
                f"{folder}: trained on a base with {key}: {json.dumps(value)}, and this one has "
                f"{json.dumps(config.get(key))}",
                hint=f"set section model as it was for this adapter ({OWN_FILE} in its folder tells base_config)",
            )


def is_nf4(model: nn.Module) -> bool:
    """Whether the model's projections are held as 4-bit codes."""
    return any(isinstance(m, nn.Linear) and m.weight.dtype is torch.uint8 for m in model.modules())


def low_rank_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """The layers of `model` that carry an update, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


def on_disk(tensor: Tensor) -> Tensor:
    """As it is written: float32, in one piece."""
    return tensor.detach().float().cpu().contiguous()


def target_names(adapted: AdaptedModel, written: list[str]) -> list[str]:
    """The section's own names where they mean just these layers, else the leaves, else the full names."""
    targets = adapted.spec.lora_target_modules
    short = sorted({name.rsplit(".", 1)[-1] for name in written}) if isinstance(targets, str) else sorted(targets)
    linears = [name for name, module in adapted.model.named_modules() if isinstance(module, nn.Linear)]
    meant = [name for name in linears if any(name == one or name.endswith("." + one) for one in short)]
    return short if sorted(meant) == sorted(written) else sorted(written)


def _low_rank(adapted: LowRankModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config, tensors = (_vera if adapted.spec.method == "vera" else _lora)(adapted)
    return config | _saved_modules(adapted, tensors), tensors


def _lora(adapted: LowRankModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of a LoRA folder: the ranks and alphas that most modules have, and the others by name."""
    spec = adapted.spec
    rank_stabilised, use_dora = spec.use_rslora or spec.method == "rslora", spec.method in ("dora", "qdora")
    tensors: dict[str, Tensor] = {}
    sizes: dict[str, tuple[int, float]] = {}
    for name, layer in adapted.layers.items():
        a_RI, b_OR = layer.pair()
        if isinstance(layer, AdaLoraLinear):
            a_RI, b_OR = a_RI[layer.kept()], b_OR[:, layer.kept()]
        if not len(a_RI):  # AdaLoRA took all of it away
            continue
        rank = len(a_RI)
        sizes[name] = rank, round(layer.scale * (rank**0.5 if rank_stabilised else rank), 9)
        tensors[f"{PREFIX}{name}.lora_A.weight"] = on_disk(a_RI)
        tensors[f"{PREFIX}{name}.lora_B.weight"] = on_disk(b_OR)
        if isinstance(layer, DoraLinear):
            tensors[f"{PREFIX}{name}.lora_magnitude_vector"] = on_disk(layer.peft_magnitude())
    (r, alpha), _ = Counter(sizes.values()).most_common(1)[0] if sizes else ((spec.lora_r, spec.lora_alpha), 0)
    config = {
        "peft_type": "LORA",
        "r": r,
        "lora_alpha": _plain(alpha),
        "lora_dropout": spec.lora_dropout,
        "target_modules": target_names(adapted, list(sizes)),
        "rank_pattern": {name: rank for name, (rank, _) in sizes.items() if rank != r},
        "alpha_pattern": {name: _plain(one) for name, (_, one) in sizes.items() if one != alpha},
        "use_rslora": rank_stabilised,
        "use_dora": use_dora,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }
    return config, tensors


def _plain(number: float) -> float | int:
    return int(number) if number == int(number) else number


def _vera(adapted: LowRankModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    spec, tensors, key = adapted.spec, {}, 0
    for name, layer in adapted.layers.items():
        assert isinstance(layer, VeraLinear)
        key = layer.seed
        tensors[f"{PREFIX}{name}.vera_lambda_b"] = on_disk(layer.vera_lambda_b)
        tensors[f"{PREFIX}{name}.vera_lambda_d"] = on_disk(layer.vera_lambda_d)
    config = {
        "peft_type": "VERA",
        "r": spec.lora_r,
        "target_modules": target_names(adapted, list(adapted.layers)),
        "projection_prng_key": key,
        "save_projection": False,
        "vera_dropout": spec.lora_dropout,
        "d_initial": spec.vera_d_initial,
        "bias": "none",
        "fan_in_fan_out": False,
    }
    return config, tensors


def _saved_modules(adapted: LowRankModel, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Adds the parts of the base that are trained in full, and says which they are."""
    own = tuple(f"{name}." for name in adapted.layers)
    found = {name: parameter for name, parameter in adapted.trained().items() if not name.startswith(own)}
    tensors.update({f"{PREFIX}{name}": on_disk(parameter) for name, parameter in found.items()})
    modules = [name.removesuffix(".weight") for name in found]
    if not modules:
        return {"modules_to_save": None}
    names = dict(adapted.model.named_parameters())
    twins = [n for n, _ in adapted.model.named_parameters(remove_duplicate=False) if n not in names and _is_head(n)]
    if not twins or "embed_tokens" not in adapted.spec.saved_parts:
        return {"modules_to_save": modules}
    table = next(parameter for name, parameter in found.items() if "embed" in name)
    tensors[f"{PREFIX}{twins[0]}"] = on_disk(table).clone()  # one tensor, which PEFT wants under both names
    return {"modules_to_save": modules, "ensure_weight_tying": True}


def _is_head(name: str) -> bool:
    return name.startswith(HEADS)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ArtifactError."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: unreadable ({error})", hint="is this a PEFT adapter folder?") from None
    if not isinstance(value, dict):
        raise ArtifactError(f"{path}: holds a {type(value).__name__}, expected an object")
    return value


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder. Raises ArtifactError."""
    check_files(folder)
    try:
        return load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"{folder / WEIGHTS_FILE}: unreadable ({error})", hint="train or copy the adapter again"
        ) from None


def check_files(folder: Path) -> None:
    """Raises ArtifactError for pickled adapter weights, for any pickle that would run code, and for a safetensors file
    whose header contradicts itself."""
    weights = folder / WEIGHTS_FILE
    pickles = scan_folder(folder) if folder.is_dir() else {}
    for path, scan in pickles.items():
        if scan.why:
            raise ArtifactError(f"{path}: a pickle, and {scan.why}: refused", hint="delete it, and load it nowhere")
    if pickles and not weights.is_file():
        raise ArtifactError(
            f"{next(iter(pickles))}: pickled weights; unpickling can run code: refused",
            hint="convert once where you trust it: PeftModel.from_pretrained(...).save_pretrained(out)",
        )
    if weights.is_file() and (problem := header_problem(weights)):
        raise ArtifactError(f"{weights}: unreadable ({problem})", hint="train or copy the adapter again")


def check_keys(expected: set[str], found: set[str], folder: Path) -> None:
    """Raises ArtifactError unless both are the same."""
    missing, unexpected = sorted(expected - found), sorted(found - expected)
    if missing or unexpected:
        raise ArtifactError(
            f"{folder / WEIGHTS_FILE}: {len(missing)} keys missing {missing[:3]}, "
            f"{len(unexpected)} unexpected {unexpected[:3]}",
            hint="the adapter belongs to another base, or the file was edited",
        )

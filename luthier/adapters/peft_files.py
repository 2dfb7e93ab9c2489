"""Adapter folders in PEFT's format: `adapter_config.json` + `adapter_model.safetensors`. PeftModel.from_pretrained
and vLLM read what is written here, and folders that PEFT wrote are read back. A key too many or too few is an error,
never a warning: loaders that shrug it off serve the base and nobody notices (peft#2115, verl#7061).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from luthier.adapters.lora import AdaptedModel, LoraLinear, apply_lora
from luthier.config.adapter import AdapterSpec
from luthier.errors import ArtifactError
from luthier.store.pickles import scan_folder
from luthier.store.safetensors_file import header_problem

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Features of PEFT's LoRA that change the numbers and that this layer does not have; present and set = refused.
_UNSUPPORTED = (
    "use_dora", "use_qalora", "use_bdlora", "lora_bias", "fan_in_fan_out", "modules_to_save", "rank_pattern",
    "alpha_pattern", "layer_replication", "layers_to_transform", "target_parameters", "trainable_token_indices",
    "alora_invocation_tokens", "exclude_modules", "megatron_config", "kasa_config", "velora_config",
    "monteclora_config", "arrow_config",
)  # fmt: skip


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """A and B of every adapted layer under PEFT's file keys (float32, on the CPU, contiguous)."""
    tensors = {}
    for name, layer in _layers(model).items():
        for matrix in ("lora_A", "lora_B"):
            tensors[f"{_PREFIX}{name}.{matrix}.weight"] = getattr(layer, matrix).detach().cpu().contiguous()
    return tensors


def save_adapter(model: nn.Module, folder: Path, spec: AdapterSpec, base_name: str) -> None:
    """Writes the adapter of `model` into `folder` (created when missing). `base_name` goes into the config for
    people.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    layers = _layers(model)
    if not layers:
        raise ArtifactError("this model carries no adapter, nothing to save")
    if isinstance(spec.lora_target_modules, str):
        targets = sorted({name.rsplit(".", 1)[-1] for name in layers})
    else:
        targets = sorted(spec.lora_target_modules)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": spec.lora_r,
        "lora_alpha": spec.lora_alpha if spec.lora_alpha != int(spec.lora_alpha) else int(spec.lora_alpha),
        "lora_dropout": spec.lora_dropout,
        "target_modules": targets,
        "use_rslora": spec.use_rslora,
        "use_dora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "inference_mode": True,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(adapter_tensors(model), folder / WEIGHTS_FILE, metadata={"format": "pt"})


def load_adapter(model: nn.Module, folder: Path) -> AdaptedModel:
    """Puts the adapter of `folder` onto the base `model`, in place.

    Raises ArtifactError when files are missing or torn, when the adapter uses a feature that this layer lacks, and
    when keys or shapes do not fit the model exactly.
    """
    folder = Path(folder)
    spec, tensors = _read_folder(folder)
    adapted = apply_lora(model, spec, seed=0)
    _check_keys(set(adapter_tensors(model)), set(tensors), folder)
    with torch.no_grad():
        for name, layer in adapted.layers.items():
            for matrix in ("lora_A", "lora_B"):
                key, parameter = f"{_PREFIX}{name}.{matrix}.weight", getattr(layer, matrix)
                if tensors[key].shape != parameter.shape:
                    raise ArtifactError(
                        f"{folder / WEIGHTS_FILE}: {key} is {tuple(tensors[key].shape)}, this model needs "
                        f"{tuple(parameter.shape)}",
                        hint="the adapter belongs to another base",
                    )
                parameter.copy_(tensors[key])
    return adapted


def read_pairs(folder: Path) -> tuple[AdapterSpec, dict[str, tuple[Tensor, Tensor]]]:
    """The adapter of `folder` without any model: its spec, and (A (r, in), B (out, r)) by module name, for merges."""
    spec, tensors = _read_folder(Path(folder))
    names = sorted({key.removeprefix(_PREFIX).rsplit(".", 2)[0] for key in tensors})
    expected = {f"{_PREFIX}{name}.{matrix}.weight" for name in names for matrix in ("lora_A", "lora_B")}
    _check_keys(expected, set(tensors), Path(folder))
    return spec, {
        name: (tensors[f"{_PREFIX}{name}.lora_A.weight"], tensors[f"{_PREFIX}{name}.lora_B.weight"]) for name in names
    }


def _read_folder(folder: Path) -> tuple[AdapterSpec, dict[str, Tensor]]:
    check_files(folder)
    config = _read_config(folder)
    try:
        tensors = load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"{folder / WEIGHTS_FILE}: unreadable ({error})", hint="train or copy the adapter again"
        ) from None
    return _spec_of(config, tensors, folder), tensors


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


def _layers(model: nn.Module) -> dict[str, LoraLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: unreadable ({error})", hint="is this a PEFT adapter folder?") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise ArtifactError(f"{path}: peft_type is {kind}, expected LORA", hint="only LoRA adapters can be loaded")
    used = [key for key in _UNSUPPORTED if config.get(key)]
    if config.get("bias", "none") != "none":
        used.append("bias")
    if used:
        raise ArtifactError(
            f"{path}: uses {', '.join(used)}, which luthier's LoRA layer does not have", hint="merge it with PEFT first"
        )
    return config


def _spec_of(config: dict[str, Any], tensors: dict[str, Tensor], folder: Path) -> AdapterSpec:
    targets = config.get("target_modules")
    if not isinstance(targets, list):  # PEFT allows a pattern here; the file's own keys say what it meant
        targets = sorted({key.removeprefix(_PREFIX).rsplit(".", 2)[0] for key in tensors})
    try:
        return AdapterSpec(
            lora_r=config["r"],
            lora_alpha=config["lora_alpha"],
            lora_dropout=config.get("lora_dropout", 0.0),
            lora_target_modules=tuple(targets),
            use_rslora=config.get("use_rslora", False),
        )
    except (KeyError, ValidationError) as error:
        raise ArtifactError(f"{folder / CONFIG_FILE}: not a usable LoRA config ({error})") from None


def _check_keys(expected: set[str], found: set[str], folder: Path) -> None:
    missing, unexpected = sorted(expected - found), sorted(found - expected)
    if missing or unexpected:
        raise ArtifactError(
            f"{folder / WEIGHTS_FILE}: {len(missing)} keys missing {missing[:3]}, "
            f"{len(unexpected)} unexpected {unexpected[:3]}",
            hint="the adapter belongs to another base, or the file was edited",
        )

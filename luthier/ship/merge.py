"""Adapter + base -> merged safetensors folder: W + scale * B @ A in float32, tensor by tensor, cast once.

Streams one shard at a time straight from safetensors, so the model is never in memory twice and no model class is
needed. Failures this guards against (research/serving.md section 4): a merge that did nothing because names did not
match, a cast that rounds the delta away, tied embeddings, adapters of kinds that this sum does not describe. PEFT's
adapter files: peft/config.py.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from luthier.adapters.peft_files import check_files
from luthier.bases.tokenizer import Tokenizer
from luthier.errors import ArtifactError
from luthier.ship.gguf_file import SafetensorsFolder, read_config
from luthier.store.pickles import PICKLE_SUFFIXES

_PREFIX = "base_model.model."
# Not copied into a merged folder: weights, whatever could run as code, and indexes (the true one is written anew).
_LEFT_BEHIND = (".safetensors", ".gguf", ".index.json", ".py", *PICKLE_SUFFIXES)
_TIED_TARGETS = ("lm_head", "embed_tokens")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class MergeReport:
    """changed_share: of the merged modules' weights, 0..1. lost_share: ||rounded - delta|| / ||delta||."""

    num_modules: int
    num_weights: int
    changed_share: float
    max_delta: float
    lost_share: float
    dtype: str


@dataclass(frozen=True)
class _Delta:
    a_RI: torch.Tensor
    b_OR: torch.Tensor
    scale: float

    def dense(self) -> torch.Tensor:
        """scale * B @ A as float32, shape (out, in)."""
        return (self.b_OR.float() @ self.a_RI.float()) * self.scale


@dataclass
class _Tally:
    num_modules: int = 0
    num_weights: int = 0
    num_changed: int = 0
    max_delta: float = 0.0
    lost_squared: float = 0.0
    delta_squared: float = 0.0


def merge(
    base_folder: Path,
    adapter_folder: Path,
    out: Path,
    *,
    stop_ids: frozenset[int] | None = None,
    dtype: str | None = None,
) -> MergeReport:
    """Writes the merged model as a Hugging Face folder `out` that plain transformers loads.

    `stop_ids`: tokens that end an answer, written to generation_config.json (default: those the base declares).
    `dtype`: dtype of the merged weights (default: as the base stores them).
    Raises ArtifactError when a module of the adapter is not in the base, was not merged, or nothing changed.
    """
    base_folder, adapter_folder, out = Path(base_folder), Path(adapter_folder), Path(out)
    config = read_config(base_folder)
    if dtype is not None and dtype not in _DTYPES:
        raise ArtifactError(f"unknown dtype {dtype!r}", hint=f"known: {', '.join(_DTYPES)}")
    deltas = _read_deltas(adapter_folder, tied=bool(config.get("tie_word_embeddings")))
    tally = _Tally()
    out.mkdir(parents=True, exist_ok=True)
    with SafetensorsFolder(base_folder) as base:
        if missing := sorted(set(deltas) - set(base.names)):
            raise ArtifactError(
                f"{adapter_folder}: {len(missing)} of {len(deltas)} adapter modules are not in the base: {missing[0]}",
                hint="this adapter was trained on another base model",
            )
        for file in base.files:
            weights = {
                name: _merged(base.tensor(name), deltas.get(name), name, dtype, tally) for name in base.names_in(file)
            }
            save_file(weights, out / file, metadata={"format": "pt"})
            stored = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    _check(tally, num_expected=len(deltas), adapter=adapter_folder)
    _copy_rest(base_folder, out, config, stop_ids=stop_ids, dtype=dtype)
    return MergeReport(
        num_modules=tally.num_modules,
        num_weights=tally.num_weights,
        changed_share=tally.num_changed / tally.num_weights,
        max_delta=tally.max_delta,
        lost_share=math.sqrt(tally.lost_squared / tally.delta_squared),
        dtype=stored,
    )


def _merged(weight: torch.Tensor, delta: _Delta | None, name: str, dtype: str | None, tally: _Tally) -> torch.Tensor:
    target = _DTYPES[dtype] if dtype and weight.is_floating_point() else weight.dtype
    if delta is None:
        return weight.to(target)
    change = delta.dense()
    if change.shape != weight.shape:
        raise ArtifactError(f"{name}: adapter gives {tuple(change.shape)}, the base has {tuple(weight.shape)}")
    exact = weight.float() + change
    if not torch.isfinite(exact).all():
        raise ArtifactError(
            f"{name}: the merged weight holds NaN or infinity", hint="the training run diverged; see its loss"
        )
    rounded = exact.to(target)
    tally.num_modules += 1
    tally.num_weights += weight.numel()
    tally.num_changed += int((rounded.float() != weight.float()).sum())
    tally.max_delta = max(tally.max_delta, float(change.abs().max()))
    tally.delta_squared += float(change.double().square().sum())
    tally.lost_squared += float((rounded.double() - weight.double() - change.double()).square().sum())
    return rounded


def _check(tally: _Tally, *, num_expected: int, adapter: Path) -> None:
    if tally.num_modules != num_expected:
        raise ArtifactError(f"{adapter}: merged {tally.num_modules} of {num_expected} modules")
    if tally.max_delta == 0.0:
        raise ArtifactError(
            f"{adapter}: every delta is zero, so merging would only copy the base", hint="was it trained?"
        )
    if tally.num_changed == 0:
        raise ArtifactError(
            f"{adapter}: the base's dtype rounds every delta (at most {tally.max_delta:.2e}) away",
            hint="merge into float32, or train with a larger learning rate",
        )


def _read_deltas(folder: Path, *, tied: bool) -> dict[str, _Delta]:
    """Base tensor name -> low-rank change, from a PEFT LoRA folder."""
    check_files(folder)
    config = _read_adapter_config(folder)
    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        raise ArtifactError(f"{path}: not found", hint="luthier reads safetensors adapters only (no pickle)")
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    with safe_open(path, "pt") as file:
        for key in file.keys():  # noqa: SIM118 - not a dict
            match = re.fullmatch(rf"{re.escape(_PREFIX)}(.+)\.lora_([AB])\.weight", key)
            if match is None:
                raise ArtifactError(
                    f"{path}: tensor {key!r} is not a LoRA matrix of a linear layer",
                    hint="fully trained or embedding modules cannot be merged here: use PEFT's merge_and_unload",
                )
            pairs.setdefault(match[1], {})[match[2]] = file.get_tensor(key)
    if not pairs:
        raise ArtifactError(f"{path}: holds no adapter tensors")
    deltas = {}
    for module, pair in pairs.items():
        _refuse_tied(module, tied=tied)
        if set(pair) != {"A", "B"}:
            raise ArtifactError(f"{path}: {module} has lora_{next(iter(pair))} but not its partner")
        rank = _pattern_value(config.get("rank_pattern"), module, config["r"])
        if pair["A"].shape[0] != rank or pair["B"].shape[1] != rank:
            raise ArtifactError(f"{path}: {module} has rank {pair['A'].shape[0]}, adapter_config.json says {rank}")
        alpha = _pattern_value(config.get("alpha_pattern"), module, config["lora_alpha"])
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        deltas[f"{module}.weight"] = _Delta(pair["A"], pair["B"], scale)
    return deltas


def _read_adapter_config(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: {error}", hint="this is not a PEFT adapter folder") from None
    refused = {
        "peft_type": config.get("peft_type", "LORA") != "LORA",
        "use_dora": bool(config.get("use_dora")),
        "bias": config.get("bias", "none") != "none",
        "lora_bias": bool(config.get("lora_bias")),
        "fan_in_fan_out": bool(config.get("fan_in_fan_out")),
        "modules_to_save": bool(config.get("modules_to_save")),
        "layer_replication": bool(config.get("layer_replication")),
        "trainable_token_indices": bool(config.get("trainable_token_indices")),
    }
    if named := [name for name, unsupported in refused.items() if unsupported]:
        raise ArtifactError(
            f"{path}: {named[0]} = {config.get(named[0])!r} is not a plain LoRA, which is what this merge computes",
            hint="merge with PEFT's merge_and_unload and give the merged folder as the model",
        )
    return config


def _refuse_tied(module: str, *, tied: bool) -> None:
    leaf = module.rsplit(".", 1)[-1]
    if tied and leaf in _TIED_TARGETS:
        raise ArtifactError(
            f"the adapter changes {module}, whose weight is tied to its twin: merging one would silently change both",
            hint="leave lm_head and embed_tokens out of adapter.lora_target_modules, or untie the base first",
        )


def _pattern_value(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    """PEFT's rule (utils/other.py get_pattern_key): the first pattern that matches the end of the name wins."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _copy_rest(
    base_folder: Path, out: Path, config: dict[str, Any], *, stop_ids: frozenset[int] | None, dtype: str | None
) -> None:
    """Everything but weights: config, tokenizer, template, licence; generation_config.json gets every stop id."""
    for path in base_folder.iterdir():
        if path.is_file() and not path.name.endswith(_LEFT_BEHIND) and path.name != "manifest.json":
            shutil.copy2(path, out / path.name)
    index = base_folder / "model.safetensors.index.json"
    if index.is_file():
        shutil.copy2(index, out / index.name)
    if dtype is not None:
        config = {key: value for key, value in config.items() if key != "torch_dtype"} | {"dtype": dtype}
        (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    path = out / "generation_config.json"
    generation = json.loads(path.read_text()) if path.is_file() else {}
    stops = sorted(stop_ids if stop_ids is not None else Tokenizer.load(base_folder).stop_ids)
    if stops:
        generation["eos_token_id"] = stops if len(stops) > 1 else stops[0]
    path.write_text(json.dumps(generation, indent=2) + "\n")

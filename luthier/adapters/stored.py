"""A stored adapter read back: onto a model (`load_adapter`), or as what it makes of each weight
(`StoredAdapter.merged`), for merges that never hold a model. Files: peft_files.py.
Shapes: I in_features, O out_features, R rank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from luthier.adapters.bottleneck import load_bottleneck, read_bottleneck
from luthier.adapters.dora import TINY, DoraLinear
from luthier.adapters.handle import AdaptedModel
from luthier.adapters.ia3 import StoredScale, load_scales, read_scales
from luthier.adapters.lora import LoraLinear, LowRankModel, put_low_rank
from luthier.adapters.peft_files import (
    CONFIG_FILE,
    OWN_FILE,
    PREFIX,
    WEIGHTS_FILE,
    check_base,
    check_keys,
    read_json,
    read_tensors,
)
from luthier.adapters.soft_prompts import PEFT_TYPES, load_prompt, read_prompt
from luthier.adapters.vera import shared_matrices
from luthier.adapters.weights import train_parts
from luthier.config.adapter import AdapterSpec
from luthier.config.adapter_methods import FACTS
from luthier.config.adapter_targets import HEADS, layer_of
from luthier.errors import ArtifactError
from luthier.kernels.nf4 import nf4_rounded

Widths = Mapping[str, tuple[int, int]]
"""in_features and out_features of every linear layer of the base, by module name."""

# Features of PEFT's LoRA that change the numbers and that luthier does not have; present and set = refused.
_UNSUPPORTED = (
    "use_qalora", "use_bdlora", "lora_bias", "fan_in_fan_out", "layer_replication", "target_parameters",
    "trainable_token_indices", "alora_invocation_tokens", "megatron_config", "kasa_config", "velora_config",
    "monteclora_config", "arrow_config",
)  # fmt: skip
_MATRICES = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "vera_lambda_b", "vera_lambda_d")


_KINDS = ("LORA", "VERA", "IA3", *PEFT_TYPES)
_VERA_SHARED = ("base_model.vera_A", "base_model.vera_B")  # in folders that do not rely on the key alone


@dataclass(frozen=True)
class StoredUpdate:
    """A (R, I), B (O, R) and their factor; with a magnitude (O,) it is DoRA's."""

    a_RI: Tensor
    b_OR: Tensor
    scale: float
    magnitude_O: Tensor | None = None

    def shape(self, weight_OI: Tensor) -> tuple[int, ...]:
        """Of the weight that it belongs to."""
        del weight_OI
        return len(self.b_OR), self.a_RI.shape[1]

    def merged(self, weight_OI: Tensor) -> Tensor:
        """The weight with the update in it, float32."""
        sum_OI = weight_OI.float() + (self.b_OR.float() @ self.a_RI.float()) * self.scale
        if self.magnitude_O is None:
            return sum_OI
        norm_O = sum_OI.norm(dim=1)
        gain_O = torch.where(norm_O > TINY, self.magnitude_O.float() / norm_O.clamp_min(TINY), 1.0)
        return sum_OI * gain_O[:, None]


@dataclass(frozen=True)
class StoredAdapter:
    """What a folder holds. updates, scales: by module; weights: parts of the base that were trained in full, by tensor
    name; prompt: of virtual tokens; bottlenecks: by parameter; nf4: the base was rounded to 4 bits under it."""

    folder: Path
    spec: AdapterSpec
    updates: dict[str, StoredUpdate] = field(default_factory=dict)
    scales: dict[str, StoredScale] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    prompt: Tensor | None = None
    bottlenecks: dict[str, Tensor] = field(default_factory=dict)
    nf4: bool = False

    @property
    def modules(self) -> set[str]:
        """The layers of the base that it changes."""
        return {*self.updates, *self.scales}

    @property
    def is_zero(self) -> bool:
        """Whether it leaves every weight as it was."""
        plain = all(update.magnitude_O is None and not update.b_OR.any() for update in self.updates.values())
        plain = plain and all(bool((scale.factor == 1).all()) for scale in self.scales.values())
        return plain and not self.weights and not self.nf4

    def changes(self, name: str, weight: Tensor) -> bool:
        """Whether a tensor of the base becomes another one."""
        is_layer = name.removesuffix(".weight") in self.modules or self._scaled_bias(name) is not None
        return name in self.weights or is_layer or self._is_rounded(name, weight)

    def merged(self, name: str, weight: Tensor) -> Tensor:
        """What a tensor of the base becomes, float32. Raises ArtifactError when the shapes do not fit."""
        if name in self.weights:
            exact = self.weights[name].float()
        else:
            exact = nf4_rounded(weight) if self._is_rounded(name, weight) else weight.float()
            module = name.removesuffix(".weight")
            change = self.updates.get(module) or self.scales.get(module)
            if change is not None:
                if (shape := change.shape(weight)) != tuple(weight.shape):
                    raise ArtifactError(f"{name}: adapter gives {shape}, the base has {tuple(weight.shape)}")
                exact = change.merged(exact)
            elif (scale := self._scaled_bias(name)) is not None:
                exact = scale.merged_bias(exact)
        if exact.shape != weight.shape:
            raise ArtifactError(f"{name}: adapter gives {tuple(exact.shape)}, the base has {tuple(weight.shape)}")
        return exact

    def _scaled_bias(self, name: str) -> StoredScale | None:
        """What the bias of this name is multiplied by, with its layer's output."""
        scale = self.scales.get(name.removesuffix(".bias")) if name.endswith(".bias") else None
        return None if scale is None or scale.by_input else scale

    def _is_rounded(self, name: str, weight: Tensor) -> bool:
        return self.nf4 and name.endswith("proj.weight") and layer_of(name) >= 0 and weight.dim() == 2


def read_adapter(folder: Path, widths: Widths) -> StoredAdapter:
    """Reads a PEFT or luthier folder. Raises ArtifactError when files are missing or torn, when it uses a feature that
    luthier does not have, and when config and tensors do not fit together.
    """
    folder = Path(folder)
    own = read_json(folder / OWN_FILE) if (folder / OWN_FILE).is_file() else {}
    nf4 = own.get("base_weights") == "nf4"
    if own and not (folder / CONFIG_FILE).is_file():
        method: Any = own.get("method")
        kind = FACTS[method].kind if method in FACTS else ""
        if kind not in ("weights", "bottleneck"):
            raise ArtifactError(f"{folder / OWN_FILE}: method is {method!r}, which needs a PEFT config beside it")
        tensors = read_tensors(folder)
        if kind == "bottleneck":
            return StoredAdapter(folder, read_bottleneck(method, tensors, folder), bottlenecks=tensors, nf4=nf4)
        return StoredAdapter(folder, AdapterSpec(method=method), weights=tensors)
    config = _read_config(folder)
    tensors = {key.removeprefix(PREFIX): x for key, x in read_tensors(folder).items()}
    if config["peft_type"] == "IA3":
        scales = read_scales(config, tensors, folder)
        spec = AdapterSpec(method="ia3", lora_target_modules=tuple(sorted(scales)))
        return StoredAdapter(folder, spec, scales=scales, nf4=nf4)
    if config["peft_type"] in PEFT_TYPES:
        spec, prompt = read_prompt(config, tensors, folder)
        return StoredAdapter(folder, spec, prompt=prompt, nf4=nf4)
    parts = {key: x for key, x in tensors.items() if not key.endswith(_MATRICES) and key not in _VERA_SHARED}
    if any("embed" in key for key in parts):
        parts = {key: x for key, x in parts.items() if not _is_twin(config, key)}
    saved = config.get("modules_to_save") or []
    unmet = {module for module in saved if not any(_belongs(key, module) for key in parts)}
    check_keys(unmet | {key for key in parts if any(_belongs(key, module) for module in saved)}, set(parts), folder)
    inside = {key: x for key, x in tensors.items() if key not in parts and not _is_twin(config, key)}
    updates = (_vera if config["peft_type"] == "VERA" else _lora)(config, inside, folder, widths)
    spec = _spec_of(config, updates, parts, folder, own.get("method"))
    weights = {_plain_name(key): x for key, x in parts.items()}
    return StoredAdapter(folder, spec, updates, weights=weights, nf4=nf4)


def _belongs(key: str, module: str) -> bool:
    """PEFT's rule for modules_to_save: the end of a module's name."""
    name = key.removesuffix(".weight").removesuffix(".bias")
    return name == module or name.endswith("." + module)


def _is_twin(config: dict[str, Any], key: str) -> bool:
    """The embedding under its head's name."""
    return bool(config.get("ensure_weight_tying")) and key.startswith(HEADS) and not key.endswith(_MATRICES)


def _plain_name(key: str) -> str:
    return key if key.endswith((".weight", ".bias")) else f"{key}.weight"


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    config = read_json(path)
    if config.get("peft_type") not in _KINDS:
        raise ArtifactError(
            f"{path}: peft_type is {config.get('peft_type')}, expected one of {', '.join(_KINDS)}",
            hint="merge it with PEFT first",
        )
    used = [key for key in _UNSUPPORTED if config.get(key)]
    if config.get("bias", "none") != "none":
        used.append("bias")
    if used:
        raise ArtifactError(
            f"{path}: uses {', '.join(used)}, which luthier's LoRA layer does not have", hint="merge it with PEFT first"
        )
    return config


def _names(tensors: dict[str, Tensor]) -> list[str]:
    names = {key.removesuffix("." + matrix) for key in tensors for matrix in _MATRICES if key.endswith(matrix)}
    return sorted(names)


def _lora(config: dict[str, Any], tensors: dict[str, Tensor], folder: Path, widths: Widths) -> dict[str, StoredUpdate]:
    del widths
    names, matrices = _names(tensors), ["lora_A.weight", "lora_B.weight"]
    matrices += ["lora_magnitude_vector"] if config.get("use_dora") else []
    check_keys({f"{name}.{matrix}" for name in names for matrix in matrices}, set(tensors), folder)
    if not names:
        raise ArtifactError(f"{folder / WEIGHTS_FILE}: holds no adapter tensors")
    _check_places(config, names, folder)
    updates = {}
    for name in names:
        a_RI, b_OR = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
        try:
            rank = _pattern_value(config.get("rank_pattern"), name, config["r"])
            alpha = _pattern_value(config.get("alpha_pattern"), name, config["lora_alpha"])
        except KeyError as error:
            raise ArtifactError(f"{folder / CONFIG_FILE}: not a usable LoRA config (no {error})") from None
        if not isinstance(alpha, (int, float)):
            raise ArtifactError(f"{folder / CONFIG_FILE}: not a usable LoRA config (lora_alpha is {alpha!r})")
        if len(a_RI) != rank or b_OR.shape[1] != rank:
            raise ArtifactError(
                f"{folder / WEIGHTS_FILE}: {name} has rank {len(a_RI)}, {CONFIG_FILE} says {rank}",
                hint="the adapter belongs to another base, or the file was edited",
            )
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        updates[name] = StoredUpdate(a_RI, b_OR, scale, tensors.get(f"{name}.lora_magnitude_vector"))
    return updates


def _check_places(config: dict[str, Any], names: Iterable[str], folder: Path) -> None:
    """ArtifactError for tensors of layers that the config leaves out: PEFT would drop them without a word."""
    layers, targets = config.get("layers_to_transform"), config.get("target_modules")
    layers = [layers] if isinstance(layers, int) else layers
    pattern = targets if isinstance(targets, str) and targets != "all-linear" else None
    for name in names:
        outside = layers and layer_of(name) not in (*layers, -1) and "layers_to_transform"
        outside = outside or (pattern is not None and not re.fullmatch(pattern, name) and "target_modules")
        if outside:
            raise ArtifactError(
                f"{folder / WEIGHTS_FILE}: holds {name}, which {outside} of {CONFIG_FILE} leaves out",
                hint="the file was edited, or the adapter is of two sources",
            )


def _vera(config: dict[str, Any], tensors: dict[str, Tensor], folder: Path, widths: Widths) -> dict[str, StoredUpdate]:
    inside = {key: x for key, x in tensors.items() if key not in _VERA_SHARED}
    names = _names(inside)
    expected = {f"{name}.{vector}" for name in names for vector in ("vera_lambda_b", "vera_lambda_d")}
    check_keys(expected, set(inside), folder)
    if missing := [name for name in names if name not in widths]:
        raise ArtifactError(f"{folder}: {missing[0]} is not in the base", hint="the adapter belongs to another base")
    key = int(config.get("projection_prng_key", 0))
    a_RI, b_OR = shared_matrices([widths[name] for name in names], int(config["r"]), key)
    if all(name in tensors for name in _VERA_SHARED):
        a_RI, b_OR = (tensors[name] for name in _VERA_SHARED)
    return {
        name: StoredUpdate(
            tensors[f"{name}.vera_lambda_d"][:, None] * a_RI[:, : widths[name][0]],
            tensors[f"{name}.vera_lambda_b"][:, None] * b_OR[: widths[name][1]],
            1.0,
        )
        for name in names
    }


def _pattern_value(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    """PEFT's rule (utils/other.py get_pattern_key): the first pattern that matches the end of the name wins."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _spec_of(
    config: dict[str, Any], updates: dict[str, StoredUpdate], parts: dict[str, Tensor], folder: Path, method: Any
) -> AdapterSpec:
    targets = config.get("target_modules")
    if not isinstance(targets, list) or config.get("layers_to_transform") or config.get("exclude_modules"):
        targets = sorted(updates)  # PEFT allows a pattern here; the file's own keys say what it meant
    usual = {"LORA": "dora" if config.get("use_dora") else "lora", "VERA": "vera"}[config["peft_type"]]
    saved = {"lm_head" if key.startswith(HEADS) else "embed_tokens" if "embed" in key else "norms" for key in parts}
    try:
        return AdapterSpec.model_validate(
            {
                "method": method if method in ("qlora", "qdora", "loftq") else usual,
                "lora_r": config["r"],
                "lora_alpha": config.get("lora_alpha", 1.0),
                "lora_dropout": config.get("lora_dropout", config.get("vera_dropout", 0.0)),
                "lora_target_modules": targets,
                "use_rslora": bool(config.get("use_rslora")),
                "rank_pattern": {n: len(u.a_RI) for n, u in updates.items() if len(u.a_RI) != config["r"]},
                "modules_to_save": sorted(saved),
            }
        )
    except (KeyError, ValidationError) as error:
        raise ArtifactError(f"{folder / CONFIG_FILE}: not a usable LoRA config ({error})") from None


def load_adapter(model: nn.Module, folder: Path) -> AdaptedModel:
    """Puts the adapter of `folder` onto the base `model`, in place. It computes what was trained, whatever the method.

    Raises ArtifactError as `read_adapter` does, and when names or shapes do not fit the model exactly.
    """
    check_base(Path(folder), getattr(model, "config", {}))
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    stored = read_adapter(folder, {name: (one.in_features, one.out_features) for name, one in linears.items()})
    if stored.nf4:
        with torch.no_grad():
            for name, linear in linears.items():
                if name.rsplit(".", 1)[-1] not in HEADS and layer_of(name) >= 0 and linear.weight.is_floating_point():
                    linear.weight.copy_(nf4_rounded(linear.weight))
    if stored.bottlenecks:
        return load_bottleneck(model, stored.spec, stored.bottlenecks, folder)
    if stored.prompt is not None:
        return load_prompt(model, stored.spec, stored.prompt, folder)
    if stored.scales:
        return load_scales(model, stored.spec, stored.scales, folder)
    if not stored.updates:
        model.requires_grad_(False)
        adapted: AdaptedModel = AdaptedModel(model, stored.spec)
        _put_weights(adapted, stored)
        return adapted
    layers = _put_updates(model, stored)
    adapted = LowRankModel(model, stored.spec, layers)
    if stored.weights:
        _put_weights(adapted, stored)
    return adapted


def _put_updates(model: nn.Module, stored: StoredAdapter) -> dict[str, LoraLinear]:
    updates, folder = stored.updates, stored.folder
    ranks = {name: len(update.a_RI) for name, update in updates.items()}
    is_dora = any(update.magnitude_O is not None for update in updates.values())

    def chosen_rank(names: list[str]) -> dict[str, int]:
        check_keys(set(names), set(updates), folder)
        return ranks

    make = DoraLinear if is_dora else LoraLinear
    layers = put_low_rank(model, stored.spec, seed=0, make=make, ranks=chosen_rank)
    with torch.no_grad():
        for name, layer in layers.items():
            update = updates[name]
            for matrix, tensor in ((layer.lora_A, update.a_RI), (layer.lora_B, update.b_OR)):
                if matrix.shape != tensor.shape:
                    raise ArtifactError(
                        f"{folder / WEIGHTS_FILE}: {name} is {tuple(tensor.shape)}, this model needs "
                        f"{tuple(matrix.shape)}",
                        hint="the adapter belongs to another base",
                    )
                matrix.copy_(tensor)
            layer.scale = update.scale
            if isinstance(layer, DoraLinear) and update.magnitude_O is not None:
                layer.set_peft_magnitude(update.magnitude_O)
    return layers


def _put_weights(adapted: AdaptedModel, stored: StoredAdapter) -> None:
    """The parts that were trained in full. A head of its own is taken off a tied embedding first."""
    model, tensors = adapted.model, stored.weights
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    if missing := sorted(set(tensors) - tied):
        raise ArtifactError(
            f"{stored.folder}: {missing[0]} is not in the base", hint="the adapter belongs to another base"
        )
    if any(name.startswith(HEADS) for name in tensors):
        train_parts(model, ["lm_head"])
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, tensor in tensors.items():
            if parameters[name].shape != tensor.shape:
                raise ArtifactError(
                    f"{stored.folder / WEIGHTS_FILE}: {name} is {tuple(tensor.shape)}, this model needs "
                    f"{tuple(parameters[name].shape)}",
                    hint="the adapter belongs to another base",
                )
            parameters[name].copy_(tensor)
            parameters[name].requires_grad_(True)
    adapted.extra_weights = True

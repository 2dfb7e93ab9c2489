"""Adapter + base -> merged safetensors folder: what the adapter makes of each weight in float32, tensor by tensor, cast
once.

Streams one shard at a time straight from safetensors, so the model is never in memory twice and no model class is
needed. Failures this guards against (research/serving.md section 4): a merge that did nothing because names did not
match, a cast that rounds the delta away, tied embeddings, adapters of kinds that cannot be merged. What a method makes
of a weight is adapters/stored.py's business.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from luthier.adapters.peft_files import check_base
from luthier.adapters.stored import StoredAdapter, read_adapter
from luthier.bases.tokenizer import Tokenizer
from luthier.errors import ArtifactError
from luthier.ship.gguf_file import SafetensorsFolder, read_config
from luthier.store.pickles import PICKLE_SUFFIXES

# Not copied into a merged folder: weights, whatever could run as code, and indexes (the true one is written anew).
_LEFT_BEHIND = (".safetensors", ".gguf", ".index.json", ".py", *PICKLE_SUFFIXES)
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
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


@dataclass
class _Tally:
    num_modules: int = 0
    num_weights: int = 0
    num_changed: int = 0
    max_delta: float = 0.0
    lost_squared: float = 0.0
    delta_squared: float = 0.0

    def count(self, exact: torch.Tensor, before: torch.Tensor, rounded: torch.Tensor) -> None:
        """One changed tensor: as it should be, as it was, as it is stored; all float32."""
        change = exact - before
        self.num_weights += exact.numel()
        self.num_changed += int((rounded != before).sum())
        self.max_delta = max(self.max_delta, float(change.abs().max()))
        self.delta_squared += float(change.double().square().sum())
        self.lost_squared += float((rounded.double() - exact.double()).square().sum())


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
    check_base(adapter_folder, config)
    if dtype is not None and dtype not in _DTYPES:
        raise ArtifactError(f"unknown dtype {dtype!r}", hint=f"known: {', '.join(_DTYPES)}")
    tally = _Tally()
    out.mkdir(parents=True, exist_ok=True)
    with SafetensorsFolder(base_folder) as base:
        shapes = {name: base.shape(name) for name in base.names}
        widths = {name.removesuffix(".weight"): (s[1], s[0]) for name, s in shapes.items() if len(s) == 2}
        stored = read_adapter(adapter_folder, widths)
        if not stored.spec.facts.mergeable:
            raise ArtifactError(
                f"{adapter_folder}: {stored.spec.method} cannot be merged: it is no change of the base's weights",
                hint="serve the adapter folder on its base",
            )
        own_head = _head_of_its_own(stored, shapes, tied=bool(config.get("tie_word_embeddings")))
        wanted = {f"{module}.weight" for module in stored.modules} | (set(stored.weights) - set(own_head))
        if missing := sorted(wanted - set(base.names)):
            raise ArtifactError(
                f"{adapter_folder}: {len(missing)} of {len(wanted)} adapter modules are not in the base: {missing[0]}",
                hint="this adapter was trained on another base model",
            )
        for file in base.files:
            weights = {name: _merged(base.tensor(name), stored, name, dtype, tally) for name in base.names_in(file)}
            if own_head and file == base.files[-1]:
                like = next(iter(weights.values())).dtype
                weights |= {name: tensor.to(like) for name, tensor in own_head.items()}
                tally.count(own_head[_HEAD].float(), base.tensor(_EMBEDDING).float(), weights[_HEAD].float())
                config = config | {"tie_word_embeddings": False}
            save_file(weights, out / file, metadata={"format": "pt"})
            kept_as = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    _check(tally, stored, num_expected=len(wanted))
    _copy_rest(base_folder, out, config, own_head=bool(own_head), stop_ids=stop_ids, dtype=dtype)
    return MergeReport(
        num_modules=tally.num_modules,
        num_weights=tally.num_weights,
        changed_share=tally.num_changed / tally.num_weights,
        max_delta=tally.max_delta,
        lost_share=math.sqrt(tally.lost_squared / tally.delta_squared),
        dtype=kept_as,
    )


def _merged(weight: torch.Tensor, stored: StoredAdapter, name: str, dtype: str | None, tally: _Tally) -> torch.Tensor:
    target = _DTYPES[dtype] if dtype and weight.is_floating_point() else weight.dtype
    if not stored.changes(name, weight):
        return weight.to(target)
    exact = stored.merged(name, weight)
    if not torch.isfinite(exact).all():
        raise ArtifactError(
            f"{name}: the merged weight holds NaN or infinity", hint="the training run diverged; see its loss"
        )
    rounded = exact.to(target)
    tally.count(exact, weight.float(), rounded.float())
    tally.num_modules += name in stored.weights or name.removesuffix(".weight") in stored.modules
    return rounded


def _head_of_its_own(
    stored: StoredAdapter, shapes: dict[str, tuple[int, ...]], *, tied: bool
) -> dict[str, torch.Tensor]:
    """The trained head where the base has only its tied embedding. Refuses a low-rank update of either twin."""
    if tied and (twins := [name for name in sorted(stored.modules) if name.rsplit(".", 1)[-1] in _TIED_TARGETS]):
        raise ArtifactError(
            f"the adapter changes {twins[0]}, whose weight is tied to its twin: merging one would silently change both",
            hint="leave lm_head and embed_tokens out of adapter.lora_target_modules, or untie the base first",
        )
    return {_HEAD: stored.weights[_HEAD]} if tied and _HEAD in stored.weights and _HEAD not in shapes else {}


def _check(tally: _Tally, stored: StoredAdapter, *, num_expected: int) -> None:
    adapter = stored.folder
    if tally.num_modules != num_expected:
        raise ArtifactError(f"{adapter}: merged {tally.num_modules} of {num_expected} modules")
    if stored.is_zero:
        raise ArtifactError(
            f"{adapter}: every delta is zero, so merging would only copy the base", hint="was it trained?"
        )
    if tally.num_changed == 0:
        raise ArtifactError(
            f"{adapter}: the base's dtype rounds every delta (at most {tally.max_delta:.2e}) away",
            hint="merge into float32, or train with a larger learning rate",
        )


def _copy_rest(
    base_folder: Path,
    out: Path,
    config: dict[str, Any],
    *,
    own_head: bool,
    stop_ids: frozenset[int] | None,
    dtype: str | None,
) -> None:
    """Everything but weights: config, tokenizer, template, licence; generation_config.json gets every stop id."""
    for path in base_folder.iterdir():
        if path.is_file() and not path.name.endswith(_LEFT_BEHIND) and path.name != "manifest.json":
            shutil.copy2(path, out / path.name)
    index = base_folder / "model.safetensors.index.json"
    if index.is_file():
        content = json.loads(index.read_text(encoding="utf-8"))
        if own_head:
            content["weight_map"][_HEAD] = max(content["weight_map"].values())
        (out / index.name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if dtype is not None:
        config = {key: value for key, value in config.items() if key != "torch_dtype"} | {"dtype": dtype}
    if dtype is not None or own_head:
        (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    path = out / "generation_config.json"
    generation = json.loads(path.read_text()) if path.is_file() else {}
    stops = sorted(stop_ids if stop_ids is not None else Tokenizer.load(base_folder).stop_ids)
    if stops:
        generation["eos_token_id"] = stops if len(stops) > 1 else stops[0]
    path.write_text(json.dumps(generation, indent=2) + "\n")

"""What a method trains, part by part, from shapes alone: the numbers, and from which layer on a gradient is needed.

Held equal to the models that adapters/ makes, for every method, by tests/plan/test_trainable.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from luthier.bases.shapes import Shapes
from luthier.config.adapter import AdapterSpec
from luthier.config.adapter_methods import WHOLE
from luthier.config.adapter_targets import first_layer, rank_of, scales_its_input, start_rank
from luthier.errors import ConfigError
from luthier.plan.linears import LinearShape, adapted_layers, layer_linears, num_norms

EMBEDDING = -1
"""As the lowest trained layer: the embedding is trained, so every layer has a backward pass."""


@dataclass(frozen=True)
class Trainable:
    """ranks: for every decoder layer, path -> rank of the update in its products; weights, norms: whether a layer's
    linear weights, and its norms, are trained; embedding, head, last_norm: whether these are; count: all numbers;
    beside: those of them that are no weights of the base; rows, keys_values: whether virtual tokens are trained at the
    first layer's input, in every layer."""

    ranks: tuple[dict[str, int], ...]
    weights: tuple[bool, ...]
    norms: tuple[bool, ...]
    embedding: bool
    head: bool
    last_norm: bool
    count: int
    beside: int
    rows: bool = False
    keys_values: bool = False

    @property
    def lowest(self) -> int:
        """The lowest layer with something trained: EMBEDDING for all, the number of layers for the head alone."""
        if self.embedding or self.rows:
            return EMBEDDING
        if self.keys_values:
            return 0
        parts = zip(self.ranks, self.weights, self.norms, strict=True)
        return next((i for i, part in enumerate(parts) if any(part)), len(self.ranks))


def trainable(shapes: Shapes, adapter: AdapterSpec) -> Trainable:
    """What `adapter` trains on a base. Raises ConfigError as choose_targets does."""
    method, layers = adapter.method, shapes.num_layers
    inside, beside = layer_linears(shapes), 0
    ranks: list[dict[str, int]] = []
    for i, paths in enumerate(adapted_layers(shapes, adapter)):
        names = {path: f"model.layers.{i}.{path}" for path in inside if path in paths}
        ranks.append({path: product_rank(adapter, name) for path, name in names.items()})
        beside += sum(_size(inside[path], adapter, name) for path, name in names.items())
    whole = method in WHOLE
    first = 0 if whole else {"layers": layers - (adapter.top_layers or 0)}.get(method, layers)
    if method == "layers":
        first = first_layer(adapter.top_layers or 0, [f"layers.{i}." for i in range(layers)])
    weights = tuple(i >= first for i in range(layers))
    saved = adapter.saved_parts if adapter.facts.kind == "low-rank" else ()
    norms = tuple(trained or "norms" in saved for trained in weights)
    embedding = whole or "embed_tokens" in saved
    head = whole or method == "head" or "lm_head" in saved or (shapes.tied and embedding)
    own_head = head and not (shapes.tied and embedding and "lm_head" not in saved)
    last_norm = whole or "norms" in saved
    table = shapes.vocab_size * shapes.hidden_size
    beside += _prompt_size(shapes, adapter)
    beside += table if own_head and shapes.tied else 0
    count = beside + sum(weights) * sum(one.size + one.has_bias * one.d_out for one in inside.values())
    count += (sum(norms) * num_norms(shapes) + last_norm) * shapes.hidden_size + (
        embedding + (own_head and not shapes.tied)
    ) * table
    is_prefix = method == "prefix_tuning"
    has_rows = adapter.facts.kind == "prompt" and not is_prefix
    return Trainable(tuple(ranks), weights, norms, embedding, head, last_norm, count, beside, has_rows, is_prefix)


def product_rank(adapter: AdapterSpec, name: str) -> int:
    """Width of the thin products of one layer's update."""
    if adapter.method == "adalora":
        return start_rank(adapter)
    if adapter.method == "ia3":
        return 0
    return rank_of(name, adapter) * (2 if adapter.method in ("pissa", "olora") else 1)


def lora_size(linear: LinearShape, rank: int) -> int:
    """Numbers that LoRA trains on one layer: A (rank x in) and B (out x rank)."""
    return rank * (linear.d_in + linear.d_out)


def _size(linear: LinearShape, adapter: AdapterSpec, name: str) -> int:
    """Numbers trained on one adapted layer."""
    rank, d_in, d_out = rank_of(name, adapter), linear.d_in, linear.d_out
    if adapter.method == "lora_fa":
        return rank * d_out
    if adapter.method == "vera":
        return adapter.lora_r + d_out
    if adapter.facts.kind == "bottleneck":
        return 2 * rank * d_out + rank + d_out
    if adapter.method == "ia3":
        return d_in if scales_its_input(name) else d_out
    if adapter.method == "adalora":
        return start_rank(adapter) * (d_in + d_out + 1)
    return lora_size(linear, rank) + (d_out if adapter.method in ("dora", "qdora") else 0)


def _prompt_size(shapes: Shapes, adapter: AdapterSpec) -> int:
    """Numbers of the virtual tokens, and of p-tuning's three square layers."""
    width = shapes.hidden_size
    if adapter.method == "prefix_tuning":
        width = 2 * shapes.num_layers * shapes.num_kv_heads * shapes.head_dim
    network = 3 * width * (width + 1) if adapter.method == "p_tuning" else 0
    return (adapter.num_virtual_tokens * width + network) * (adapter.facts.kind == "prompt")


def optimizer_size(shapes: Shapes, adapter: AdapterSpec) -> int:
    """Numbers that the optimizer keeps: AdamW's two moments; of a matrix under galore those of its projection, and the
    directions. Raises ConfigError for a rank above a width."""
    size, rank = 2 * trainable(shapes, adapter).count, adapter.lora_r
    if adapter.method != "galore":
        return size
    inside = layer_linears(shapes).values()
    narrow = min(inside, key=lambda one: min(one.d_in, one.d_out))
    if rank > (width := min(narrow.d_in, narrow.d_out)):
        raise ConfigError(
            f"adapter.lora_r: {rank} is above the width {width} of {narrow.leaf}, and galore projects on lora_r "
            "directions of it",
            hint=f"use at most {width}, or adapter.method: full",
        )
    sides = (sorted((one.d_in, one.d_out)) for one in inside)
    return size + shapes.num_layers * sum(rank * (2 * long + short) - 2 * long * short for short, long in sides)


def count_trainable(shapes: Shapes, adapter: AdapterSpec) -> int:
    """Numbers that are trained on the whole base. Raises ConfigError as choose_targets does."""
    return trainable(shapes, adapter).count

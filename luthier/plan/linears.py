"""From the sizes of a base to its linear layers: what LoRA attaches to, and how many numbers that trains.

Names are Hugging Face's; which names a target matches, and which it refuses, follows adapters/lora.py (a test holds
both equal on every architecture), but without torch and without weights.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from luthier.bases.shapes import Shapes
from luthier.config.adapter import AdapterSpec
from luthier.errors import ConfigError

OWN_MODELS = ("llama", "mistral", "qwen2", "gemma2", "phi3")  # as models/spec.py; others are counted as llama
_HEADS = ("lm_head", "embed_out")


@dataclass(frozen=True)
class LinearShape:
    """One linear layer: its last name (q_proj) and its widths."""

    leaf: str
    d_in: int
    d_out: int
    has_bias: bool = False

    @property
    def size(self) -> int:
        """Numbers in the weight, without the bias."""
        return self.d_in * self.d_out


def layer_linears(shapes: Shapes) -> dict[str, LinearShape]:
    """The linear layers of one decoder layer, by their path inside it (self_attn.q_proj)."""
    hidden, ffn = shapes.hidden_size, shapes.ffn_size
    q_size, kv_size = shapes.num_heads * shapes.head_dim, shapes.num_kv_heads * shapes.head_dim
    qkv_bias, o_bias = shapes.attention_bias, shapes.attention_bias and shapes.model_type != "qwen2"
    if shapes.model_type == "phi3":
        attention = [LinearShape("qkv_proj", hidden, q_size + 2 * kv_size)]
        mlp = [LinearShape("gate_up_proj", hidden, 2 * ffn)]
    else:
        attention = [
            LinearShape(leaf, hidden, size, qkv_bias)
            for leaf, size in (("q_proj", q_size), ("k_proj", kv_size), ("v_proj", kv_size))
        ]
        mlp = [LinearShape("gate_proj", hidden, ffn), LinearShape("up_proj", hidden, ffn)]
    attention.append(LinearShape("o_proj", q_size, hidden, o_bias))
    mlp.append(LinearShape("down_proj", ffn, hidden))
    inside = {f"self_attn.{linear.leaf}": linear for linear in attention}
    return inside | {f"mlp.{linear.leaf}": linear for linear in mlp}


def count_parameters(shapes: Shapes) -> int:
    """Numbers of the whole base from its sizes alone; a tied head counts once."""
    linears = layer_linears(shapes).values()
    norms = (4 if shapes.model_type == "gemma2" else 2) * shapes.hidden_size
    per_layer = sum(one.size + one.has_bias * one.d_out for one in linears) + norms
    tables = (1 if shapes.tied else 2) * shapes.vocab_size * shapes.hidden_size
    return tables + shapes.num_layers * per_layer + shapes.hidden_size


def adapted_layers(shapes: Shapes, adapter: AdapterSpec) -> tuple[frozenset[str], ...]:
    """For every decoder layer the paths (self_attn.q_proj) that carry an adapter.

    Raises ConfigError for a target that matches nothing or names the head, and for a rank above a layer's width.
    """
    inside = layer_linears(shapes)
    names = {f"model.layers.{i}.{path}": (i, path) for i in range(shapes.num_layers) for path in inside}
    targets = adapter.lora_target_modules
    chosen = set(names) if isinstance(targets, str) else set().union(*(_matches(one, names, shapes) for one in targets))
    for name in chosen:
        linear = inside[names[name][1]]
        if adapter.lora_r > min(linear.d_in, linear.d_out):
            width = min(linear.d_in, linear.d_out)
            raise ConfigError(
                f"adapter.lora_r: {adapter.lora_r} is above the width {width} of {linear.leaf}",
                hint=f"use at most {width}, or leave {linear.leaf} out of lora_target_modules",
            )
    return tuple(
        frozenset(path for path in inside if f"model.layers.{i}.{path}" in chosen) for i in range(shapes.num_layers)
    )


def _matches(target: str, names: dict[str, tuple[int, str]], shapes: Shapes) -> set[str]:
    if target.rsplit(".", 1)[-1] in _HEADS:
        raise ConfigError(
            f"adapter.lora_target_modules: {target!r} is the head, which is read directly and may be tied",
            hint="leave it out; all-linear leaves it out too",
        )
    found = {name for name in names if name == target or name.endswith("." + target)}
    if not found and shapes.model_type not in OWN_MODELS:
        raise ConfigError(
            f"adapter.lora_target_modules: a plan does not know the layers of {shapes.model_type!r}, so neither "
            f"{target!r}; training may",
            hint="for a rough plan: --set adapter.lora_target_modules=all-linear",
        )
    if not found:
        leaves = sorted({name.rsplit(".", 1)[-1] for name in names})
        near = difflib.get_close_matches(target, leaves, n=1, cutoff=0.0)
        raise ConfigError(
            f"adapter.lora_target_modules: {target!r} matches no linear layer of this model",
            hint=f"nearest is {near[0]}; the model has {', '.join(leaves)}",
        )
    return found


def lora_size(linear: LinearShape, rank: int) -> int:
    """Numbers that LoRA trains on one layer: A (rank x in) and B (out x rank)."""
    return rank * (linear.d_in + linear.d_out)


def count_trainable(shapes: Shapes, adapter: AdapterSpec) -> int:
    """Numbers that LoRA trains on the whole base. Raises ConfigError as `adapted_layers` does."""
    inside = layer_linears(shapes)
    return sum(lora_size(inside[p], adapter.lora_r) for paths in adapted_layers(shapes, adapter) for p in paths)

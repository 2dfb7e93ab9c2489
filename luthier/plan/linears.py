"""From the sizes of a base to its linear layers: what LoRA attaches to, and how many numbers that trains.

Names are Hugging Face's; which names a target matches, and which it refuses, follows adapters/lora.py (a test holds
both equal on every architecture), but without torch and without weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from luthier.bases.shapes import Shapes
from luthier.config.adapter import AdapterSpec
from luthier.config.adapter_targets import HEADS, choose_targets
from luthier.errors import ConfigError

OWN_MODELS = ("llama", "mistral", "qwen2", "gemma2", "phi3")  # as models/spec.py; others are counted as llama
LINEAR_KINDS = ("low-rank", "vectors", "bottleneck")  # kinds of method that put something onto linear layers


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


def num_norms(shapes: Shapes) -> int:
    """Norms in one decoder layer."""
    return 4 if shapes.model_type == "gemma2" else 2


def count_parameters(shapes: Shapes) -> int:
    """Numbers of the whole base from its sizes alone; a tied head counts once."""
    linears = layer_linears(shapes).values()
    norms = num_norms(shapes) * shapes.hidden_size
    per_layer = sum(one.size + one.has_bias * one.d_out for one in linears) + norms
    tables = (1 if shapes.tied else 2) * shapes.vocab_size * shapes.hidden_size
    return tables + shapes.num_layers * per_layer + shapes.hidden_size


def adapted_layers(shapes: Shapes, adapter: AdapterSpec) -> tuple[frozenset[str], ...]:
    """For every decoder layer the paths (self_attn.q_proj) that carry an adapter; none for a method without.

    Raises ConfigError as choose_targets does.
    """
    inside = layer_linears(shapes)
    chosen: set[str] = set()
    if adapter.facts.kind in LINEAR_KINDS:
        widths = {
            f"model.layers.{i}.{path}": (one.d_in, one.d_out)
            for i in range(shapes.num_layers)
            for path, one in inside.items()
        }
        _refuse_unknown_names(shapes, adapter, widths)
        chosen = set(choose_targets(widths, adapter))
    return tuple(
        frozenset(path for path in inside if f"model.layers.{i}.{path}" in chosen) for i in range(shapes.num_layers)
    )


def _refuse_unknown_names(shapes: Shapes, adapter: AdapterSpec, names: Iterable[str]) -> None:
    if shapes.model_type in OWN_MODELS or isinstance(adapter.lora_target_modules, str):
        return
    for target in adapter.lora_target_modules:
        known = any(name == target or name.endswith("." + target) for name in names)
        if not known and target.rsplit(".", 1)[-1] not in HEADS:
            raise ConfigError(
                f"adapter.lora_target_modules: a plan does not know the layers of {shapes.model_type!r}, so neither "
                f"{target!r}; training may",
                hint="for a rough plan: --set adapter.lora_target_modules=all-linear",
            )

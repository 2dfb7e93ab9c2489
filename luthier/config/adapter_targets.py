"""Which linear layers an adapter section means, by names alone, and each one's rank and scale.

Without torch and without a model, so that a run and the plan of it cannot disagree. PEFT's rules: a target, or a
pattern, is the end of a name.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping

from luthier.config.adapter import AdapterSpec
from luthier.errors import ConfigError

HEADS = ("lm_head", "embed_out")  # what transformers calls the output projection
# What transformers calls keys and values (with the queries in some), and the feed-forward block's last layer.
_KEYS_AND_VALUES = ("k_proj", "v_proj", "qkv_proj", "query_key_value")
_FEED_FORWARD_ENDS = ("down_proj", "fc2", "fc_out", "dense_4h_to_h", "w2")


_BLOCK_ENDS = ("o_proj", "out_proj", *_FEED_FORWARD_ENDS)
_OWN_TARGETS = {
    "ia3": (*_KEYS_AND_VALUES, *_FEED_FORWARD_ENDS), "houlsby": _BLOCK_ENDS, "pfeiffer": _FEED_FORWARD_ENDS
}  # fmt: skip


def choose_targets(widths: Mapping[str, tuple[int, int]], spec: AdapterSpec, *, any_rank: bool = False) -> list[str]:
    """The names that get an adapter, in the order of `widths` (every linear layer's name -> in, out features).

    Raises ConfigError when a target or pattern matches nothing or names the head, for top_layers above what there are,
    and (unless any_rank) for a rank above a layer's width.
    """
    head_free = [name for name in widths if _leaf(name) not in HEADS]
    if not head_free:
        raise ConfigError("adapter.lora_target_modules: this model has no linear layer to adapt")
    chosen = _usual(head_free, spec)
    if not isinstance(spec.lora_target_modules, str):
        chosen = set().union(*(_matches(target, list(widths), head_free) for target in spec.lora_target_modules))
    if spec.top_layers is not None:
        first = first_layer(spec.top_layers, head_free)
        chosen = {name for name in chosen if layer_of(name) >= first}
        if not chosen:
            raise ConfigError(
                f"adapter.top_layers: none of lora_target_modules lies in the last {spec.top_layers} layers",
                hint="name layers as q_proj, without a number, or raise top_layers",
            )
    names = [name for name in head_free if name in chosen]
    for pattern in (*spec.rank_pattern, *spec.alpha_pattern):
        if not any(_ends_with(name, pattern) for name in names):
            key = "rank_pattern" if pattern in spec.rank_pattern else "alpha_pattern"
            raise _no_match(f"adapter.{key}", pattern, names, "adapted layer")
    for name in names if not any_rank else ():
        _check_rank(name, widths[name], spec)
    return names


def scales_its_input(name: str) -> bool:
    """ia3: whether the layer of this name is multiplied before its product, not after."""
    return _leaf(name) in _FEED_FORWARD_ENDS


def _usual(head_free: list[str], spec: AdapterSpec) -> set[str]:
    """What all-linear means. Raises ConfigError for a model without any layer that the method is for."""
    if spec.method not in _OWN_TARGETS:
        return set(head_free)
    chosen = {name for name in head_free if _leaf(name) in _OWN_TARGETS[spec.method]}
    if not chosen and isinstance(spec.lora_target_modules, str):
        leaves = ", ".join(sorted({_leaf(name) for name in head_free}))
        raise ConfigError(
            f"adapter.method: {spec.method} knows none of the layers {leaves} of this model",
            hint="adapter.method: lora",
        )
    return chosen


def first_layer(top_layers: int, names: list[str]) -> int:
    """Index of the lowest of the last `top_layers` layers. Raises ConfigError when there are not as many."""
    num_layers = 1 + max((layer_of(name) for name in names), default=-1)
    if top_layers > num_layers:
        raise ConfigError(
            f"adapter.top_layers: {top_layers}, but this model has {num_layers} layers", hint=f"at most {num_layers}"
        )
    return num_layers - top_layers


def layer_of(name: str) -> int:
    """The number in a layer's name, -1 when it has none."""
    found = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
    return int(found[1]) if found else -1


def is_projected(name: str, num_dimensions: int) -> bool:
    """galore: whether a weight of this name is updated in a subspace: the matrices of the decoder layers."""
    return num_dimensions == 2 and layer_of(name) >= 0


def rank_of(name: str, spec: AdapterSpec) -> int:
    """Rank of one layer."""
    return int(_by_pattern(name, spec.rank_pattern, spec.lora_r))


def scale_of(name: str, spec: AdapterSpec) -> float:
    """Factor of one layer's update: alpha / r, or alpha / sqrt(r) when rank-stabilised."""
    rank, alpha = rank_of(name, spec), _by_pattern(name, spec.alpha_pattern, spec.lora_alpha)
    return alpha / (math.sqrt(rank) if spec.use_rslora or spec.method == "rslora" else rank)


def _leaf(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _ends_with(name: str, pattern: str) -> bool:
    return name == pattern or name.endswith("." + pattern)


def _by_pattern(name: str, patterns: Mapping[str, float], default: float) -> float:
    return next((value for pattern, value in patterns.items() if _ends_with(name, pattern)), default)


def _matches(target: str, names: list[str], head_free: list[str]) -> set[str]:
    found = {name for name in names if _ends_with(name, target)}
    if any(_leaf(name) in HEADS for name in found) or _leaf(target) in HEADS:
        raise ConfigError(
            f"adapter.lora_target_modules: {target!r} is the head, which is read directly and may be tied",
            hint="leave it out; all-linear leaves it out too. To train it in full: adapter.modules_to_save: [lm_head]",
        )
    if not found:
        raise _no_match("adapter.lora_target_modules", target, head_free, "linear layer")
    return found


def _no_match(key: str, pattern: str, names: list[str], what: str) -> ConfigError:
    leaves = sorted({_leaf(name) for name in names})
    near = difflib.get_close_matches(pattern, leaves + sorted(names), n=1, cutoff=0.0)
    return ConfigError(
        f"{key}: {pattern!r} matches no {what} of this model",
        hint=f"nearest is {near[0] if near else 'none'}; the model has {', '.join(leaves)}",
    )


def _check_rank(name: str, widths: tuple[int, int], spec: AdapterSpec) -> None:
    if spec.method in ("vera", "ia3"):  # shared matrices, which may be wider than a layer; no rank
        return
    width = min(widths)
    rank = max(rank_of(name, spec), start_rank(spec)) if spec.method == "adalora" else rank_of(name, spec)
    if rank > width:
        raise ConfigError(
            f"adapter.lora_r: {rank} is above the width {width} of {name} ({widths[0]} -> {widths[1]})",
            hint=f"use at most {width}, or leave {_leaf(name)} out of lora_target_modules",
        )


def start_rank(spec: AdapterSpec) -> int:
    """adalora: rank of every layer before any is taken away."""
    return spec.adalora_init_r or -(-3 * spec.lora_r // 2)

"""config.json of a base -> config.json of the same base with a longer context. Pure; no weight changes.

What is written is what transformers 5 reads (`rope_parameters`), and beside it what older readers do (`rope_scaling`,
`rope_theta`) where the base has it that way. Formulas: models/rope.py. `ntk` needs no kind of its own: it is a larger
rope_theta, theta * factor ** (d / (d - 2)) for d rotary dimensions, so that the slowest frequency is stretched by the
factor and the fastest is kept (bloc97, NTK-aware scaled RoPE, 2023; the rule that transformers' `dynamic` also uses).
A base that is stretched already is stretched further in its own kind: its factor is multiplied, the length that it was
pre-trained at stays.
"""

from __future__ import annotations

from typing import Any

from luthier.config.model import RopeScalingSpec
from luthier.errors import ConfigError

_KEY, _SHORTER = "model.rope_scaling", "drop it, and train.sequence_len within the base's context"
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}  # those of Llama 3.1 to 3.3
_ORIGINAL = "original_max_position_embeddings"


def with_rope_scaling(config: dict[str, Any], scaling: RopeScalingSpec) -> dict[str, Any]:
    """The config with positions stretched as asked. Raises ConfigError for a base that cannot be stretched so."""
    params = dict(config.get("rope_scaling") or {}) | dict(config.get("rope_parameters") or {})
    theta = params.get("rope_theta") or config.get("rope_theta")
    context = config.get("max_position_embeddings")
    own = params.get("rope_type") or params.get("type") or "default"
    if not isinstance(context, int) or not (params or theta):
        found = f"{_KEY}: this base ({config.get('model_type')}) has no rotary positions to stretch"
        raise ConfigError(found, hint=_SHORTER)
    _refuse(config, params, own, scaling)
    params = {key: value for key, value in params.items() if key != "type"}
    theta, longer = float(theta or 10_000.0), int(context * scaling.factor)
    if scaling.rope_type == "ntk":
        theta *= scaling.factor ** (1 + 2 / (_rotary_dim(config, params) - 2))
        params |= {"rope_type": "default"}
    else:
        original = config.get(_ORIGINAL) or params.get(_ORIGINAL) or context
        so_far = 1.0 if own == "default" else float(params.get("factor") or context / original)
        params = {key: value for key, value in params.items() if key != "attention_factor"}  # it follows from factor
        params |= {"rope_type": scaling.rope_type, "factor": so_far * scaling.factor}
        if scaling.rope_type != "linear":
            params |= {_ORIGINAL: original}
        params = (_LLAMA3 if scaling.rope_type == "llama3" else {}) | params
    changed = config | {"max_position_embeddings": longer, "rope_parameters": params | {"rope_theta": theta}}
    if "rope_theta" in config:
        changed["rope_theta"] = theta
    if config.get("rope_scaling") or ("rope_theta" in config and scaling.rope_type != "ntk"):
        changed["rope_scaling"] = params | {"rope_theta": theta}
    return changed


def _rotary_dim(config: dict[str, Any], params: dict[str, Any]) -> int:
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    partial = params.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    return int(head_dim * partial)


def _refuse(config: dict[str, Any], params: dict[str, Any], own: str, asked: RopeScalingSpec) -> None:
    """Raises ConfigError with the nearest thing that works."""
    kind, model_type = asked.rope_type, config.get("model_type")
    if any(isinstance(value, dict) for value in params.values()):
        raise ConfigError(f"{_KEY}: this base ({model_type}) rotates its layers in different ways", hint=_SHORTER)
    if own in ("dynamic", "longrope", "su"):
        found = f"{_KEY}: this base is stretched by {own} already, which has no further factor"
        raise ConfigError(found, hint=_SHORTER)
    if own not in ("default", kind):
        hint = f"{_KEY}: {{rope_type: {own}, factor: {asked.factor:g}}}, on top of its own {own}"
        raise ConfigError(f"{_KEY}: this base is stretched by {own} already, and {kind} was asked for", hint=hint)
    if model_type == "phi3" and kind != "ntk":
        hint = f"{_KEY}: {{rope_type: ntk, factor: {asked.factor:g}}}"
        raise ConfigError(f"{_KEY}: readers of phi3 refuse {kind}, or take it for longrope", hint=hint)

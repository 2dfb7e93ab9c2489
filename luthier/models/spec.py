"""config.json -> DecoderSpec: everything the decoder needs to know about an architecture, as plain data.

Reads the spellings of transformers 4 (rope_theta + rope_scaling) and 5 (rope_parameters). Defaults of absent keys are
those of transformers' config classes. What the decoder does not do (another model type, an unknown rope scaling,
dropout inside the base, ...) is reported as a reason, never approximated: load.py then takes the transformers path.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import BaseModelError
from luthier.models.rope import KNOWN_ROPES, RopeSpec

# Defaults of transformers' config classes where they differ between the families that the decoder knows.
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048, "num_key_value_heads": None, "rms_norm_eps": 1e-6},
    "mistral": {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6,
        "sliding_window": 4096,
    },
    "qwen2": {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-6,
        "sliding_window": 4096,
    },
    "gemma2": {
        "max_position_embeddings": 8192,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "sliding_window": 4096,
        "head_dim": 256,
        "tie_word_embeddings": True,
    },
    "phi3": {
        "max_position_embeddings": 4096,
        "num_key_value_heads": None,
        "rms_norm_eps": 1e-5,
        "original_max_position_embeddings": 4096,
    },
}
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


class NotOurs(Exception):
    """The decoder does not do this configuration; the message says why. Caught by load.py, never seen by a user."""


@dataclass(frozen=True)
class DecoderSpec:
    """Shapes and switches of one decoder. windows: tokens a query sees per layer, itself included (None = all)."""

    arch: str
    vocab_size: int
    hidden_size: int
    ffn_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: RopeSpec
    norm_eps: float
    activation: str
    attention_scale: float
    windows: tuple[int | None, ...]
    max_positions: int
    tied: bool
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    fused_projections: bool = False
    extra_norms: bool = False
    norm_offset: bool = False
    embed_scale: float = 1.0
    attention_soft_cap: float | None = None
    final_soft_cap: float | None = None


def read_config(folder: Path) -> dict[str, Any]:
    """The model folder's config.json as a dict. Raises BaseModelError when it is absent or not a JSON object."""
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BaseModelError(f"{path}: not found", hint="a model folder holds config.json and safetensors") from error
    except (OSError, ValueError) as error:
        raise BaseModelError(f"{path}: not readable JSON ({error})", hint="copy the model folder again") from error
    if not isinstance(config, dict):
        raise BaseModelError(f"{path}: expected a JSON object", hint="copy the model folder again")
    if config.get("quantization_config"):
        method = (config["quantization_config"] or {}).get("quant_method", "unknown")
        raise BaseModelError(
            f"{path}: the weights are quantised ({method})", hint="use the unquantised folder of this model"
        )
    return config


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and value > 0


def spec_from_config(config: dict[str, Any]) -> DecoderSpec:
    """DecoderSpec of a parsed config.json. Raises NotOurs with the reason when the decoder cannot do it exactly."""
    arch = config.get("model_type", "")
    if arch not in _FAMILIES:
        raise NotOurs(f"model type {arch!r} is not among {', '.join(_FAMILIES)}")
    wrong = [f"{key} is {config.get(key)!r}" for key in _REQUIRED if not _is_size(config.get(key))]
    if wrong:
        raise BaseModelError(f"config.json: {', '.join(wrong)}: sizes are expected", hint="copy the model folder again")
    c = {"head_dim": None, "sliding_window": None, **_FAMILIES[arch], **config}
    _refuse_what_we_do_not_do(c)
    num_heads = c["num_attention_heads"]
    head_dim = c["head_dim"] or c["hidden_size"] // num_heads
    bias = bool(c.get("attention_bias", False)) and arch in ("llama", "gemma2")
    is_gemma = arch == "gemma2"
    activation = c.get("hidden_activation", "gelu_pytorch_tanh") if is_gemma else c.get("hidden_act", "silu")
    if activation not in _ACTIVATIONS:
        raise NotOurs(f"activation {activation!r} is not known")
    return DecoderSpec(
        arch=arch,
        vocab_size=c["vocab_size"],
        hidden_size=c["hidden_size"],
        ffn_size=c["intermediate_size"],
        num_layers=c["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=c["num_key_value_heads"] or num_heads,
        head_dim=head_dim,
        rope=_rope(c, head_dim),
        norm_eps=float(c["rms_norm_eps"]),
        activation=_ACTIVATIONS[activation],
        attention_scale=(c.get("query_pre_attn_scalar", 256) if is_gemma else head_dim) ** -0.5,
        windows=_windows(c),
        max_positions=c["max_position_embeddings"],
        tied=bool(c.get("tie_word_embeddings", False)),
        qkv_bias=bias or arch == "qwen2",
        o_bias=bias,
        mlp_bias=bool(c.get("mlp_bias", False)) and arch == "llama",
        fused_projections=arch == "phi3",
        extra_norms=is_gemma,
        norm_offset=is_gemma,
        embed_scale=c["hidden_size"] ** 0.5 if is_gemma else 1.0,
        attention_soft_cap=c.get("attn_logit_softcapping", 50.0) if is_gemma else None,
        final_soft_cap=c.get("final_logit_softcapping", 30.0) if is_gemma else None,
    )


def _refuse_what_we_do_not_do(c: dict[str, Any]) -> None:
    dropouts = [key for key in ("attention_dropout", "resid_pdrop", "embd_pdrop") if c.get(key)]
    if dropouts:
        raise NotOurs(f"{dropouts[0]} is {c[dropouts[0]]}: dropout inside the base is not supported")
    if c.get("use_bidirectional_attention"):
        raise NotOurs("use_bidirectional_attention is set")
    if c.get("auto_map"):
        raise NotOurs("auto_map names code of the model's own")
    if c["model_type"] == "mistral" and c.get("layer_types"):
        raise NotOurs("a Mistral with layer_types")


def _windows(c: dict[str, Any]) -> tuple[int | None, ...]:
    num_layers, window, arch = c["num_hidden_layers"], c["sliding_window"], c["model_type"]
    if arch == "llama" or (arch == "qwen2" and not c.get("use_sliding_window", False)):
        window = None
    kinds = c.get("layer_types") if arch in ("qwen2", "gemma2") else None
    if kinds is None and arch == "gemma2":
        kinds = ["full_attention" if i % 2 else "sliding_attention" for i in range(num_layers)]
    elif kinds is None and arch == "qwen2":
        first = c.get("max_window_layers", 28)
        kinds = ["sliding_attention" if i >= first else "full_attention" for i in range(num_layers)]
    elif kinds is None:
        kinds = ["sliding_attention"] * num_layers
    unknown = set(kinds) - {"full_attention", "sliding_attention"}
    if unknown or len(kinds) != num_layers:
        raise NotOurs(f"layer_types {sorted(unknown) or len(kinds)}")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _rope(c: dict[str, Any], head_dim: int) -> RopeSpec:
    """The rotary settings. Precedence of keys follows transformers' standardize_rope_params."""
    params = dict(c.get("rope_scaling") or c.get("rope_parameters") or {})
    if any(isinstance(value, dict) for value in params.values()):
        raise NotOurs("rope_parameters differ by layer type")
    kind = params.get("rope_type") or params.get("type") or "default"
    if c["model_type"] == "phi3":  # Phi-3 checkpoints of 2024 say "su" or "yarn" and mean longrope
        kind = {"su": "longrope", "yarn": "longrope"}.get(kind, kind)
    if kind not in KNOWN_ROPES:
        raise NotOurs(f"rope scaling {kind!r} is not among {', '.join(KNOWN_ROPES)}")
    theta = params.get("rope_theta") or c.get("rope_theta") or 10_000.0
    partial = params.get("partial_rotary_factor") or c.get("partial_rotary_factor") or 1.0
    if c["model_type"] != "phi3" and partial != 1.0:
        raise NotOurs(f"partial_rotary_factor {partial} on {c['model_type']}")
    base = {"kind": kind, "theta": float(theta), "rotary_dim": int(head_dim * partial)}
    if kind == "default":
        return RopeSpec(**base, original_max=c["max_position_embeddings"])
    original = (
        c.get("original_max_position_embeddings")
        or params.get("original_max_position_embeddings")
        or c["max_position_embeddings"]
    )
    try:
        return RopeSpec(**base, original_max=original, **_scaling(kind, params, original, c["max_position_embeddings"]))
    except KeyError as error:
        raise BaseModelError(
            f"config.json: rope scaling {kind!r} lacks {error}", hint="copy the model folder again"
        ) from error


def _scaling(kind: str, params: dict[str, Any], original: int, max_positions: int) -> dict[str, Any]:
    """The fields of RopeSpec that belong to one scaling; KeyError names a key that it cannot do without."""
    if kind == "linear":
        return {"factor": float(params["factor"])}
    if kind == "llama3":
        return {key: float(params[key]) for key in ("factor", "low_freq_factor", "high_freq_factor")}
    factor = params.get("factor")
    factor = float(factor) if factor is not None else max_positions / original
    given = params.get("attention_factor")
    if kind == "yarn":
        mscale, all_dim = params.get("mscale"), params.get("mscale_all_dim")
        if given is None and mscale and all_dim:
            given = _yarn_scale(factor, mscale) / _yarn_scale(factor, all_dim)
        return {
            "factor": factor,
            "attention_factor": _yarn_scale(factor, 1.0) if given is None else float(given),
            "beta_fast": float(params.get("beta_fast") or 32),
            "beta_slow": float(params.get("beta_slow") or 1),
            "truncate": bool(params.get("truncate", True)),
        }
    if given is None:
        given = 1.0 if factor <= 1.0 else math.sqrt(1 + math.log(factor) / math.log(original))
    return {
        "factor": factor,
        "attention_factor": float(given),
        "short_factor": tuple(params["short_factor"]),
        "long_factor": tuple(params["long_factor"]),
    }


def _yarn_scale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

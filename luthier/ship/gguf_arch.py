"""What differs between architectures in a GGUF file: hyperparameters, tensor names and weight conventions.

GGUF stores some weights differently from Hugging Face: llama.cpp's Llama rotates interleaved pairs, so q and k rows
are permuted; its Gemma norms hold 1 + w. Each rule has its inverse, so a file can be read back to Hugging Face
weights. Source of the conventions: llama.cpp's conversion/{llama,qwen,gemma,phi}.py, and the `gguf` package's tensor
name maps. What llama.cpp cannot express (a sliding window for Mistral and Phi-3, other rope scalings) is a note or an
error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np

from luthier.errors import ArtifactError

_MODEL_ARCHS = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
_GEMMA2_27B_LAYERS = 46
_ROPE_FREQS = "rope_freqs.weight"
_ROPE_LONG = "rope_factors_long.weight"
_ROPE_SHORT = "rope_factors_short.weight"
EXTRA_TENSORS = (_ROPE_FREQS, _ROPE_LONG, _ROPE_SHORT)
"""Tensors of a file that are no weights: they come from config.json's rope scaling."""


@dataclass(frozen=True)
class ArchRule:
    """How one Hugging Face `model_type` is stored. ignores_window: llama.cpp attends past the sliding window."""

    gguf_arch: str
    permute_qk: bool = False
    norm_plus_one: bool = False
    ignores_window: bool = False


RULES = {
    "llama": ArchRule("llama", permute_qk=True),
    "mistral": ArchRule("llama", permute_qk=True, ignores_window=True),
    "qwen2": ArchRule("qwen2", ignores_window=True),
    "gemma2": ArchRule("gemma2", norm_plus_one=True),
    "phi3": ArchRule("phi3", ignores_window=True),
}
"""Supported architectures by config.json's `model_type`."""


def rule_of(config: dict[str, Any]) -> ArchRule:
    """The rule for config.json; raises ArtifactError that names the supported architectures."""
    model_type = config.get("model_type")
    if model_type not in RULES:
        raise ArtifactError(
            f"GGUF export does not know the architecture {model_type!r}; it knows {', '.join(RULES)}",
            hint="ship the merged safetensors folder (set ship.formats to []), or use llama.cpp's own script",
        )
    return RULES[model_type]


def head_dim(config: dict[str, Any]) -> int:
    """Width of one attention head."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def rope_of(config: dict[str, Any]) -> dict[str, Any]:
    """Rope settings in one dict (transformers 5 `rope_parameters`, or the older `rope_theta` + `rope_scaling`)."""
    rope = dict(config.get("rope_scaling") or {}) | dict(config.get("rope_parameters") or {})
    rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    rope["rope_theta"] = rope.get("rope_theta") or config.get("rope_theta") or 10_000.0
    rope.setdefault("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    original = config.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
    rope["original_max_position_embeddings"] = original or config["max_position_embeddings"]
    return rope


def lost_window(config: dict[str, Any]) -> int | None:
    """The sliding window that llama.cpp will not apply, when the model's context is longer than it; else None."""
    window = config.get("sliding_window")
    if not rule_of(config).ignores_window or not window or config.get("use_sliding_window") is False:
        return None
    return window if window < config["max_position_embeddings"] else None


def write_hyperparameters(writer: gguf.GGUFWriter, config: dict[str, Any]) -> list[str]:
    """Writes the shape and rope keys of config.json; returns notes on what the file format cannot say."""
    rule, rope, notes = rule_of(config), rope_of(config), []
    width = head_dim(config)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config.get("num_key_value_heads") or config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_rope_dimension_count(int(rope["partial_rotary_factor"] * width))
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    _write_rope_scaling(writer, config, rope)
    if rule.gguf_arch == "gemma2":
        _write_gemma2(writer, config)
    if rule.gguf_arch == "phi3":
        writer.add_sliding_window(config.get("sliding_window") or 0)
    if window := lost_window(config):
        notes.append(
            f"llama.cpp does not apply this model's sliding window: keep prompt + answer within {window} tokens"
        )
    return notes


def _write_gemma2(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """Soft caps and window; llama.cpp derives the attention scale from the shape, so another scale is refused."""
    is_27b = config["num_hidden_layers"] == _GEMMA2_27B_LAYERS
    derived = config["hidden_size"] / config["num_attention_heads"] if is_27b else head_dim(config)
    if config.get("query_pre_attn_scalar", derived) != derived:
        raise ArtifactError(
            f"gemma2 with query_pre_attn_scalar {config['query_pre_attn_scalar']}: llama.cpp would use {derived:g}",
            hint="ship the merged safetensors folder",
        )
    if not config.get("attn_logit_softcapping") or not config.get("final_logit_softcapping"):
        raise ArtifactError("gemma2 without soft caps: llama.cpp always applies them", hint="ship the merged folder")
    writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
    writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    writer.add_sliding_window(config["sliding_window"])


def _write_rope_scaling(writer: gguf.GGUFWriter, config: dict[str, Any], rope: dict[str, Any]) -> None:
    kind, original = rope["rope_type"], rope["original_max_position_embeddings"]
    if kind in ("default", "llama3"):  # llama3's factors are a tensor, see extra_tensors
        return
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(rope["factor"]))
        writer.add_rope_scaling_orig_ctx_len(original)
    elif kind in ("longrope", "su"):
        scale = config["max_position_embeddings"] / original
        factor = rope.get("attention_factor")
        factor = factor or (math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0)
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(float(factor))
    else:
        raise ArtifactError(
            f"GGUF export does not know rope scaling {kind!r}", hint="ship the merged safetensors folder"
        )


def extra_tensors(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Rope frequency factors that GGUF keeps as tensors (Llama 3 and longrope), float32; empty for plain rope."""
    rope = rope_of(config)
    if rope["rope_type"] in ("longrope", "su"):
        return {
            _ROPE_LONG: np.asarray(rope["long_factor"], np.float32),
            _ROPE_SHORT: np.asarray(rope["short_factor"], np.float32),
        }
    if rope["rope_type"] != "llama3":
        return {}
    width = head_dim(config)
    wavelengths = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, width, 2, dtype=np.float64) / width)
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    original = rope["original_max_position_embeddings"]
    smooth = np.clip((original / wavelengths - low) / (high - low), 0.0, 1.0)
    return {_ROPE_FREQS: (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)}


def tensor_names(config: dict[str, Any], names: Iterable[str]) -> dict[str, str]:
    """Hugging Face name -> GGUF name, in order."""
    arch = _MODEL_ARCHS[rule_of(config).gguf_arch]
    name_map = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    mapped = {}
    for name in names:
        if name.endswith("rotary_emb.inv_freq"):
            continue
        target = name_map.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise ArtifactError(f"tensor {name} has no place in a GGUF file of {config['model_type']}")
        mapped[name] = target
    return mapped


def to_gguf(config: dict[str, Any], name: str, weight: np.ndarray) -> np.ndarray:
    """The weight (or bias) of Hugging Face tensor `name` as GGUF stores it."""
    rule = rule_of(config)
    if rule.norm_plus_one and name.endswith("norm.weight"):
        return weight + 1
    if rule.permute_qk and (heads := _heads_of(config, name)):
        return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    return weight


def from_gguf(config: dict[str, Any], name: str, weight: np.ndarray) -> np.ndarray:
    """Inverse of `to_gguf`."""
    rule = rule_of(config)
    if rule.norm_plus_one and name.endswith("norm.weight"):
        return weight - 1
    if rule.permute_qk and (heads := _heads_of(config, name)):
        return weight.reshape(heads, -1, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    return weight


def _heads_of(config: dict[str, Any], name: str) -> int:
    """Number of heads when `name` is a q or k projection, else 0."""
    if name.endswith(("q_proj.weight", "q_proj.bias")):
        return config["num_attention_heads"]
    if name.endswith(("k_proj.weight", "k_proj.bias")):
        return config.get("num_key_value_heads") or config["num_attention_heads"]
    return 0

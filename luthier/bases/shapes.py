"""The facts of config.json that other rooms plan with, and the parameter count from the safetensors headers.

Source: the config fields of transformers' Llama-line models; safetensors header layout (8-byte length, then JSON).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.bases.folder import read_json, weight_files
from luthier.errors import BaseModelError
from luthier.store.safetensors_file import read_header


@dataclass(frozen=True)
class Shapes:
    """Sizes of one decoder. num_parameters counts every stored weight once (a tied head is not stored twice); 0 where
    config.json stands alone.

    sliding_window is None when attention is global; dtype is that of the stored weights as config.json names it.
    """

    model_type: str
    architecture: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    vocab_size: int
    max_positions: int
    tied: bool
    attention_bias: bool
    sliding_window: int | None
    rope_theta: float
    rope_type: str
    dtype: str
    num_parameters: int


def read_shapes(folder: Path, config: dict[str, Any] | None = None) -> Shapes:
    """The shapes of the base model in `folder`; config: what stands for its config.json. Raises BaseModelError naming a
    field that config.json lacks."""
    folder = Path(folder)
    config = read_json(folder / "config.json") if config is None else config
    if isinstance(config.get("text_config"), dict):  # multimodal wrappers keep the decoder's facts one level down
        config = {**config, **config["text_config"]}
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    num_heads, hidden_size = _field(folder, config, "num_attention_heads"), _field(folder, config, "hidden_size")
    tied = bool(config.get("tie_word_embeddings", config.get("model_type") in ("gemma", "gemma2", "gemma3_text")))
    return Shapes(
        model_type=str(config.get("model_type", "")),
        architecture=(config.get("architectures") or [""])[0],
        num_layers=_field(folder, config, "num_hidden_layers"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=config.get("num_key_value_heads") or num_heads,
        head_dim=config.get("head_dim") or hidden_size // num_heads,
        ffn_size=_field(folder, config, "intermediate_size"),
        vocab_size=_field(folder, config, "vocab_size"),
        max_positions=int(config.get("max_position_embeddings") or 0),
        tied=tied,
        attention_bias=bool(config.get("attention_bias", config.get("model_type") == "qwen2")),
        sliding_window=config.get("sliding_window") if config.get("use_sliding_window", True) else None,
        rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
        rope_type=str(rope.get("rope_type") or rope.get("type") or "default"),
        dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
        num_parameters=_count_parameters(folder, tied=tied),
    )


def _field(folder: Path, config: dict[str, Any], name: str) -> int:
    value = config.get(name)
    if not isinstance(value, int) or value <= 0:
        raise BaseModelError(
            f"{folder / 'config.json'}: {name} is {value!r}, a positive integer is expected",
            hint="is this the folder of a causal language model?",
        )
    return value


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every stored tensor, read from the safetensors headers only."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(Path(folder)):
        try:
            entries, _ = read_header(path)
        except ValueError as error:
            raise BaseModelError(f"{path}: {error}", hint="copy or download it again") from None
        shapes |= {name: tuple(entry["shape"]) for name, entry in entries.items() if name != "__metadata__"}
    return shapes


def _count_parameters(folder: Path, *, tied: bool) -> int:
    if not any(folder.glob("*.safetensors*")):
        return 0
    shapes = tensor_shapes(folder)
    twice = tied and any(name.endswith("embed_tokens.weight") for name in shapes)
    return sum(math.prod(shape) for name, shape in shapes.items() if not (twice and name == "lm_head.weight"))

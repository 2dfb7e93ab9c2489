"""Writes a tiny Llama GGUF (mixed F32 / Q8_0 / Q4_1) with a byte-level tokenizer."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from tokenizers import pre_tokenizers

HIDDEN, FFN, HEADS, KV_HEADS, LAYERS = 64, 96, 4, 2, 2


def _weights(num_tokens: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"token_embd": (num_tokens, HIDDEN), "output_norm": (HIDDEN,)}
    head_dim = HIDDEN // HEADS
    for i in range(LAYERS):
        shapes |= {
            f"blk.{i}.attn_norm": (HIDDEN,),
            f"blk.{i}.ffn_norm": (HIDDEN,),
            f"blk.{i}.attn_q": (HIDDEN, HIDDEN),
            f"blk.{i}.attn_k": (KV_HEADS * head_dim, HIDDEN),
            f"blk.{i}.attn_v": (KV_HEADS * head_dim, HIDDEN),
            f"blk.{i}.attn_output": (HIDDEN, HIDDEN),
            f"blk.{i}.ffn_gate": (FFN, HIDDEN),
            f"blk.{i}.ffn_up": (FFN, HIDDEN),
            f"blk.{i}.ffn_down": (HIDDEN, FFN),
        }
    return {f"{name}.weight": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write_tiny_gguf(path: Path, *, arch: str = "llama", pre: str = "smollm") -> Path:
    """A whole, random model: 2 layers, hidden 64, 4 heads / 2 kv heads. Returns `path`."""
    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "Ġa"]
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name("Tiny")
    writer.add_license("apache-2.0")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges(["a b", "Ġ a"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(1)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}</s>{% endfor %}")
    kinds = gguf.GGMLQuantizationType
    for name, weight in _weights(len(tokens)).items():
        kind = kinds.F32 if weight.ndim == 1 else kinds.Q8_0 if "embd" in name else kinds.Q4_1
        writer.add_tensor(name, gguf.quants.quantize(weight, kind) if kind != kinds.F32 else weight, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

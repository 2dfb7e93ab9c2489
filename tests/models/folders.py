"""The matrix of tiny random models that the decoder is held against, as Hugging Face folders, and their oracles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM

from luthier.types import Batch

_SMALL = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 64}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.0, 2.0, 3.0, 4.0],
    "original_max_position_embeddings": 20,
}
# name -> (transformers class stem, settings). Documents of the tests are up to 33 tokens long, windows shorter.
MATRIX: dict[str, tuple[str, dict]] = {
    "llama-gqa-tied": ("Llama", {"tie_word_embeddings": True}),
    "tinyllama": ("Llama", {"num_attention_heads": 8, "num_key_value_heads": 1, "rms_norm_eps": 1e-5}),
    "codellama": ("Llama", {"num_key_value_heads": 6, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 16}),
    "llama3-rope": ("Llama", {"rope_parameters": _LLAMA3}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}}),
    "llama-yarn": ("Llama", {"rope_parameters": _YARN}),
    "mistral-window": ("Mistral", {"sliding_window": 7}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "gemma2": (
        "Gemma2",
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 24,
            "sliding_window": 6,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "phi3": ("Phi3", {"sliding_window": 9}),
    "phi3-longrope": (
        "Phi3",
        {"rope_parameters": _LONGROPE, "original_max_position_embeddings": 20, "max_position_embeddings": 80},
    ),
}


def make_folder(folder: Path, name: str, **save_options) -> Path:
    """A random model of the matrix, saved by transformers. Weights are scaled up so that attention is not flat."""
    stem, settings = MATRIX[name]
    config = getattr(transformers, f"{stem}Config")(**(_SMALL | settings))
    torch.manual_seed(0)
    model = getattr(transformers, f"{stem}ForCausalLM")(config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            spread = 0.2 if parameter.dim() == 1 else 0.12
            parameter.add_(torch.randn_like(parameter) * spread)
            if "norm" not in parameter_name and parameter.dim() == 1:
                parameter.mul_(3.0)
    model.save_pretrained(folder, **save_options)
    return folder


def oracle(folder: Path):
    """transformers' own model, eager attention (it has no fast path to go wrong on)."""
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def pack(documents: list[list[int]], keep: list[list[int]] | None = None) -> Batch:
    """Batch of documents; keep: per document the kept positions (None = all but each document's last)."""
    lengths = [len(ids) for ids in documents]
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    keep = [list(range(n - 1)) for n in lengths] if keep is None else keep
    kept = np.array([b + k for b, ks in zip(bounds[:-1], keep, strict=True) for k in ks], dtype=np.int64)
    ids = np.concatenate([np.asarray(d) for d in documents]).astype(np.uint32)
    positions = np.concatenate([np.arange(n) for n in lengths])
    targets = ids[np.minimum(kept + 1, len(ids) - 1)]
    return Batch(ids, positions, bounds, kept, targets, tuple(map(str, range(len(documents)))))


def documents(lengths: list[int], seed: int = 0, vocab_size: int = 101) -> list[list[int]]:
    """Random token ids, none of them special."""
    rng = np.random.default_rng(seed)
    return [rng.integers(3, vocab_size, n).tolist() for n in lengths]


def oracle_logits(model, docs: list[list[int]]) -> list[torch.Tensor]:
    """(L, V) per document, each run alone."""
    return [model(input_ids=torch.tensor([d]), use_cache=False).logits[0] for d in docs]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference over largest magnitude."""
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-12))

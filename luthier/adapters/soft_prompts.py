"""Prompt tuning (arXiv 2104.08691), p-tuning (2103.10385) and prefix tuning (2101.00190): the base stays as it is, and
virtual tokens before every document are trained. How the decoder runs them: models/soft_prompt.py.

Prompt tuning trains their embeddings, p-tuning an embedding and a small network that makes them, prefix tuning keys and
values of every layer. Prompt and prefix tuning start as real tokens (adapter.prompt_init_text, else words drawn from
the vocabulary): the base behind those tokens, exactly. So both papers advise: from random numbers they learn slowly or
not at all, which is also why prefix tuning needs no network to make its keys and values here. Saved, all three are
PEFT's folders: of p-tuning's network only what it gives.
Shapes: P virtual tokens, D hidden, L layers, G key/value heads, C head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.adapters.handle import AdaptedModel
from luthier.adapters.peft_files import CONFIG_FILE, WEIGHTS_FILE, check_keys, on_disk
from luthier.config.adapter import AdapterSpec
from luthier.errors import ArtifactError, ConfigError, TrainError

Encode = Callable[[str], Sequence[int]]
PEFT_TYPES = {"PROMPT_TUNING": "prompt_tuning", "P_TUNING": "p_tuning", "PREFIX_TUNING": "prefix_tuning"}
KEY = "prompt_embeddings"


class PromptRows(nn.Module):
    """Virtual tokens as rows of the first layer's input."""

    per_layer = False

    def __init__(self, start_PD: Tensor) -> None:
        super().__init__()
        self.enabled, self.num_tokens = True, len(start_PD)
        self.embedding = nn.Parameter(start_PD.float().clone())

    def rows(self) -> Tensor:
        """(P, D)."""
        return self.embedding

    def keys_values(self) -> list[tuple[Tensor, Tensor]]:
        """There are none."""
        return []


class MadeRows(PromptRows):
    """p-tuning: rows that a network of three layers makes, as PEFT's MLP encoder does."""

    def __init__(self, num_tokens: int, width: int, device: torch.device) -> None:
        super().__init__(torch.randn(num_tokens, width, device=device))
        linears = [nn.Linear(width, width, device=device) for _ in range(3)]
        self.mlp_head = nn.Sequential(linears[0], nn.ReLU(), linears[1], nn.ReLU(), linears[2])

    def rows(self) -> Tensor:
        """(P, D)."""
        return self.mlp_head(self.embedding)


class PrefixKeysValues(PromptRows):
    """Prefix tuning: (P, L * 2 * G * C), keys and values of every layer by turns."""

    per_layer = True

    def __init__(self, start_PX: Tensor, num_heads: int, head_dim: int) -> None:
        super().__init__(start_PX)
        self.heads = (num_heads, head_dim)

    def keys_values(self) -> list[tuple[Tensor, Tensor]]:
        """Per layer (P, G, C) each."""
        parts = self.embedding.view(self.num_tokens, -1, *self.heads).unbind(1)
        return list(zip(parts[::2], parts[1::2], strict=True))


class SoftPromptModel(AdaptedModel):
    """Handle of a model behind virtual tokens."""

    def __init__(self, model: Any, spec: AdapterSpec, prompt: PromptRows) -> None:
        if not hasattr(model, "soft_prompt"):
            raise ConfigError(
                f"adapter.method: {spec.method} needs luthier's own decoder ({model.note})", hint="adapter.method: lora"
            )
        if model.soft_prompt is not None:
            raise TrainError("this model already carries virtual tokens", hint="load the base again")
        super().__init__(model, spec, [prompt])
        self.prompt = prompt
        model.requires_grad_(False)
        model.soft_prompt = prompt

    def as_peft(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """One tensor, `prompt_embeddings`."""
        model: Any = self.model
        sizes, method = model.spec, self.spec.method
        config: dict[str, Any] = {
            "peft_type": next(kind for kind, name in PEFT_TYPES.items() if name == method),
            "num_virtual_tokens": self.prompt.num_tokens,
            "num_transformer_submodules": 1,
            "num_layers": sizes.num_layers,
            "token_dim": sizes.hidden_size,
            "num_attention_heads": sizes.num_heads,
        }
        if method == "p_tuning":
            config |= {"encoder_reparameterization_type": "MLP", "encoder_hidden_size": sizes.hidden_size}
        if method == "prefix_tuning":
            width = sizes.num_kv_heads * sizes.head_dim
            config |= {"token_dim": width, "num_attention_heads": sizes.num_kv_heads, "encoder_hidden_size": width}
        return config, {KEY: on_disk(self.prompt.rows())}


def apply_soft_prompt(model: Any, spec: AdapterSpec, *, seed: int, encode: Encode) -> SoftPromptModel:
    """prompt_tuning, p_tuning and prefix_tuning. encode: text -> ids of the base's tokenizer.

    Raises ConfigError for a model that is not luthier's own decoder, and for a text that has no token.
    """
    if not hasattr(model, "soft_prompt"):
        return SoftPromptModel(model, spec, PromptRows(torch.zeros(1, 1)))  # raises
    if spec.method == "p_tuning":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            rows = MadeRows(spec.num_virtual_tokens, model.spec.hidden_size, torch.device("cpu")).to(model.device)
        return SoftPromptModel(model, spec, rows)
    ids = _first_ids(spec, model.spec.vocab_size, seed, encode)
    if spec.method == "prompt_tuning":
        table = model.model.embed_tokens.weight.detach()
        return SoftPromptModel(model, spec, PromptRows(table[torch.tensor(ids, device=table.device)]))
    prefix = model.session(num_slots=1, capacity=1, prefix=ids, length_class=0).prefix
    pairs = [x.transpose(0, 1).flatten(1) for pair in zip(prefix.keys, prefix.values, strict=True) for x in pair]
    return SoftPromptModel(model, spec, _prefix(model, torch.cat(pairs, dim=1)))


def _prefix(model: Any, flat_PX: Tensor) -> PrefixKeysValues:
    return PrefixKeysValues(flat_PX, model.spec.num_kv_heads, model.spec.head_dim)


def _first_ids(spec: AdapterSpec, vocab_size: int, seed: int, encode: Encode) -> list[int]:
    """The tokens to begin as: those of the text, over and over until there are enough, or drawn from the vocabulary."""
    count = spec.num_virtual_tokens
    if not spec.prompt_init_text:
        return torch.randint(vocab_size, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    ids = list(encode(spec.prompt_init_text))
    if not ids:
        raise ConfigError("adapter.prompt_init_text: has no token", hint="leave it out, or say what the task is")
    return (ids * -(-count // len(ids)))[:count]


def read_prompt(config: dict[str, Any], tensors: dict[str, Tensor], folder: Path) -> tuple[AdapterSpec, Tensor]:
    """Method and (P, ...) numbers of a PEFT folder. Raises ArtifactError when they do not fit together."""
    check_keys({KEY}, set(tensors), folder)
    count, flat = config.get("num_virtual_tokens"), tensors[KEY]
    if flat.dim() != 2 or len(flat) != count:
        raise ArtifactError(
            f"{folder / WEIGHTS_FILE}: {KEY} is {tuple(flat.shape)}, {CONFIG_FILE} says {count} virtual tokens",
            hint="the file was edited",
        )
    return AdapterSpec(method=PEFT_TYPES[config["peft_type"]], num_virtual_tokens=count), flat  # type: ignore[arg-type]


def load_prompt(model: Any, spec: AdapterSpec, flat: Tensor, folder: Path) -> SoftPromptModel:
    """Puts stored virtual tokens before a base, in place. Raises ArtifactError when they do not fit it."""
    if not hasattr(model, "soft_prompt"):
        raise ArtifactError(f"{folder}: {spec.method} needs luthier's own decoder ({model.note})")
    sizes, is_prefix = model.spec, spec.method == "prefix_tuning"
    width = 2 * sizes.num_layers * sizes.num_kv_heads * sizes.head_dim if is_prefix else sizes.hidden_size
    if flat.shape[1] != width:
        raise ArtifactError(
            f"{folder / WEIGHTS_FILE}: {flat.shape[1]} numbers for each virtual token, this model needs {width}",
            hint="the adapter belongs to another base",
        )
    flat = flat.to(model.device)
    return SoftPromptModel(model, spec, _prefix(model, flat) if is_prefix else PromptRows(flat))

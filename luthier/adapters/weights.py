"""Methods that train weights of the base itself: full (all), galore (all, moved by engine/galore.py), layers (the last
k), head (the output head), and the parts that modules_to_save adds to a low-rank method.

A tied head is one tensor with the embedding: full trains the one tensor with both gradients; head, and lm_head in
modules_to_save, give the head a tensor of its own first, because training it would move the embedding too.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from luthier.adapters.handle import AdaptedModel
from luthier.config.adapter import AdapterSpec
from luthier.config.adapter_methods import WHOLE
from luthier.config.adapter_targets import HEADS, first_layer, layer_of
from luthier.errors import ConfigError

_EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings")


def apply_weights(model: nn.Module, spec: AdapterSpec, *, seed: int) -> AdaptedModel:
    """full, galore, layers and head, in place; nothing is drawn. Raises ConfigError where the model lacks the part."""
    del seed
    model.requires_grad_(spec.method in WHOLE)
    adapted = AdaptedModel(model, spec)
    adapted.extra_weights = True
    if spec.method == "head":
        _train_head(model)
    if spec.method == "layers":
        names = [name for name, _ in model.named_parameters()]
        first = first_layer(spec.top_layers or 0, names)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(layer_of(name) >= first)
    return adapted


def train_parts(model: nn.Module, parts: Iterable[str]) -> None:
    """Makes embed_tokens, lm_head or norms trainable beside what is. Raises ConfigError where the model has no such
    part."""
    for part in parts:
        if part == "lm_head":
            _train_head(model)
            continue
        if part == "embed_tokens":
            found = [m for name, m in model.named_modules() if name.rsplit(".", 1)[-1] in _EMBEDDINGS]
        else:
            found = [m for m in model.modules() if "norm" in type(m).__name__.lower()]
        if not found:
            raise ConfigError(f"adapter.modules_to_save: this model has no {part}", hint="leave it out")
        for module in found:
            module.requires_grad_(True)


def head_name(model: nn.Module) -> str:
    """Name of the output head. Raises ConfigError for a model without one."""
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] in HEADS and isinstance(module, nn.Linear):
            return name
    raise ConfigError("adapter: this model has no output head to train", hint="adapter.method: lora")


def _train_head(model: nn.Module) -> None:
    head = model.get_submodule(head_name(model))
    assert isinstance(head, nn.Linear)
    others = [m for m in model.modules() if m is not head and getattr(m, "weight", None) is head.weight]
    if others:
        head.weight = nn.Parameter(head.weight.detach().clone())
    head.requires_grad_(True)

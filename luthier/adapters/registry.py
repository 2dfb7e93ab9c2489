"""adapter.method -> the function that puts it onto a model. One line a method; its facts: config/adapter_methods.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from luthier.adapters.adalora import apply_adalora
from luthier.adapters.bottleneck import apply_bottleneck
from luthier.adapters.dora import apply_dora
from luthier.adapters.handle import AdaptedModel
from luthier.adapters.ia3 import apply_ia3
from luthier.adapters.lora import apply_longlora, apply_lora
from luthier.adapters.soft_prompts import apply_soft_prompt
from luthier.adapters.starts import apply_eva, apply_loftq, apply_offset
from luthier.adapters.vera import apply_vera
from luthier.adapters.weights import apply_weights, train_parts
from luthier.config.adapter import AdapterSpec


@dataclass(frozen=True)
class Given:
    """What some starts need of the run. feed: sends a batch of its rows through the model; original: a weight of the
    base as it is stored, by name; encode: text -> ids of its tokenizer."""

    feed: Callable[[], object]
    original: Callable[[str], Tensor]
    encode: Callable[[str], Sequence[int]]


Apply = Callable[..., AdaptedModel]
METHODS: dict[str, Apply] = {
    "lora": apply_lora,
    "rslora": apply_lora,
    "lora_plus": apply_lora,
    "lora_fa": apply_lora,
    "longlora": apply_longlora,
    "qlora": apply_lora,
    "dora": apply_dora,
    "qdora": apply_dora,
    "pissa": apply_offset,
    "olora": apply_offset,
    "eva": apply_eva,
    "loftq": apply_loftq,
    "vera": apply_vera,
    "adalora": apply_adalora,
    "ia3": apply_ia3,
    "prompt_tuning": apply_soft_prompt,
    "p_tuning": apply_soft_prompt,
    "prefix_tuning": apply_soft_prompt,
    "houlsby": apply_bottleneck,
    "pfeiffer": apply_bottleneck,
    "full": apply_weights,
    "galore": apply_weights,
    "layers": apply_weights,
    "head": apply_weights,
}


def apply_method(model: nn.Module, spec: AdapterSpec, *, seed: int, given: Given) -> AdaptedModel:
    """Puts spec.method onto `model`, in place; everything else is frozen. One seed gives one start.

    Raises ConfigError for targets, ranks or parts that the model does not have, TrainError for a model that carries
    adapters already.
    """
    needs = {"eva": {"feed": given.feed}, "loftq": {"original": given.original}}
    needed = {"encode": given.encode} if spec.facts.kind == "prompt" else needs.get(spec.method, {})
    adapted = METHODS[spec.method](model, spec, seed=seed, **needed)
    if spec.saved_parts:
        train_parts(model, spec.saved_parts)
        adapted.extra_weights = True
    return adapted

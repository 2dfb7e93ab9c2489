"""What the tests of methods share: a tiny base, every method at settings that fit it, and a step that moves it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from luthier.adapters.handle import AdaptedModel
from luthier.adapters.registry import Given, apply_method
from luthier.config.adapter import AdapterSpec
from luthier.config.adapter_methods import FACTS
from luthier.losses.sft import sft_loss_sum
from luthier.models.int8 import load_frozen
from luthier.models.load import read_weight
from luthier.types import Batch

IDS = np.arange(24) * 7 % 200
SETTINGS = {"layers": {"top_layers": 1}, "vera": {"lora_r": 32}} | {
    method: {"num_virtual_tokens": 5} for method in ("prompt_tuning", "p_tuning", "prefix_tuning")
}


def spec_of(method: str, **changes) -> AdapterSpec:
    """Rank 4 and alpha 8 where nothing else is said."""
    return AdapterSpec(**{"method": method, "lora_r": 4, "lora_alpha": 8, **SETTINGS.get(method, {}), **changes})


def batch_of(ids: np.ndarray = IDS) -> Batch:
    """One row, every position trained."""
    return Batch(ids, np.arange(len(ids)), np.array([0, len(ids)]), np.arange(len(ids)), ids, row_ids=("one",))


def adapted(base: Path, spec: AdapterSpec, *, seed: int = 0, dtype: str | None = None) -> AdaptedModel:
    """The base with the method on it, in training mode."""
    model = load_frozen(base, dtype=dtype or ("nf4" if spec.facts.needs_nf4 else "float32"), sample=batch_of())
    given = Given(lambda: model.hidden(batch_of()), lambda name: read_weight(base, name), list)
    handle = apply_method(model, spec, seed=seed, given=given)
    model.train()
    return handle


def logits(model, ids: np.ndarray = IDS) -> torch.Tensor:
    """(24, V) without gradients."""
    with torch.no_grad():
        return model.head(model.hidden(batch_of(ids)))


def move(handle: AdaptedModel, steps: int = 3, rate: float = 2e-2, total: int = 100) -> None:
    """A few plain AdamW steps on the row, the first ones of `total`."""
    optimizer = torch.optim.AdamW(handle.trained().values(), lr=rate, weight_decay=0.0)
    for step in range(1, steps + 1):
        model = handle.model
        optimizer.zero_grad()
        sft_loss_sum(model.head(model.hidden(batch_of())), torch.tensor(np.roll(IDS, -1))).backward()
        handle.before_update(step, total)
        optimizer.step()
        handle.after_update(step, total)


METHODS = sorted(FACTS)

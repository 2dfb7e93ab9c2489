"""The cheapest change that makes a run fit: only settings that luthier has, tried from the gentlest on.

Order: what leaves the numbers of the run as they are (a smaller token budget with more accumulation), then the type of
the frozen weights, then less to train, then another method (LoRA instead of the base's own weights, a 4-bit base), then
a smaller base. The choices of model.dtype are read from its spec, so that
nothing is proposed that does not exist.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

from luthier.bases.shapes import Shapes
from luthier.config.model import ModelSpec
from luthier.config.project import ProjectSpec
from luthier.errors import ConfigError
from luthier.plan.known import known_bases, smaller_bases
from luthier.plan.linears import OWN_MODELS
from luthier.plan.predict import Prediction, predict
from luthier.plan.workload import Workload, resized
from luthier.types import MachineProfile

_FEW_TARGETS = ("q_proj", "v_proj")
_FEW_TARGETS_FUSED = ("qkv_proj",)
_SMALL_RANKS = (8, 4)
MIN_TOKENS = 64


@dataclass(frozen=True)
class Change:
    """Settings to override (as --set takes them), what they change for the result, and what the run then needs."""

    settings: tuple[tuple[str, str], ...]
    effect: str
    prediction: Prediction


def dtypes_on_offer(machine: MachineProfile) -> list[str]:
    """Values of model.dtype that exist in luthier and that the machine runs, narrowest last."""
    known = get_args(ModelSpec.model_fields["dtype"].annotation)
    return [dtype for dtype in ("float32", "bfloat16", "int8") if dtype in known and dtype in machine.rates_gflops]


def cheapest_change(shapes: Shapes, spec: ProjectSpec, workload: Workload, machine: MachineProfile) -> Change | None:
    """The first change of the order in the module docstring that fits `machine`; None when none does."""
    for candidate, settings, effect in _candidates(shapes, spec, workload, machine):
        found = predict(shapes, candidate, resized(workload, spec.train, candidate.train), machine)
        if found.fits and not found.problem:
            return Change(settings, effect, found)
    budgets = [None, *_budgets(spec, workload)]
    for (name, smaller), budget in itertools.product(smaller_bases(shapes), (budgets[0], budgets[-1])):
        candidate, settings, effect = _with(spec, budget=budget)
        try:
            found = predict(smaller, candidate, resized(workload, spec.train, candidate.train), machine)
        except ConfigError:  # this base has other layers than the targets name, or is too narrow for the rank
            continue
        if found.fits and not found.problem:
            effects = (f"a smaller base ({known_bases()[name]['hub']}, to be fetched first): another model", effect)
            return Change((("model.base", name), *settings), "; ".join(filter(None, effects)), found)
    return None


def _candidates(
    shapes: Shapes, spec: ProjectSpec, workload: Workload, machine: MachineProfile
) -> Iterator[tuple[ProjectSpec, tuple[tuple[str, str], ...], str]]:
    budgets = list(_budgets(spec, workload))
    allowed = spec.adapter.facts.dtypes
    dtypes = [d for d in dtypes_on_offer(machine) if d != spec.model.dtype and d in allowed]
    for budget in budgets:
        yield _with(spec, budget=budget)
    for dtype, budget in itertools.product(dtypes, [None, *budgets]):
        yield _with(spec, dtype=dtype, budget=budget)
    targets = _FEW_TARGETS_FUSED if shapes.model_type == "phi3" else _FEW_TARGETS
    ranks = [rank for rank in _SMALL_RANKS if rank < spec.adapter.lora_r]
    smallest = budgets[-1] if budgets else None
    if spec.adapter.facts.kind == "low-rank":
        for dtype, rank, few in itertools.product([None, *dtypes], [None, *ranks], [None, targets]):
            if rank or few:
                yield _with(spec, dtype=dtype, budget=smallest, rank=rank, targets=few)
    for (method, dtype), budget in itertools.product(_other_methods(shapes, spec), [None, *budgets]):
        yield _with(spec, dtype=dtype, budget=budget, method=method)


def _other_methods(shapes: Shapes, spec: ProjectSpec) -> list[tuple[str, str | None]]:
    """(method, model.dtype) to fall back to."""
    if spec.adapter.facts.kind == "weights":
        return [("lora", None)]
    four_bits = {"lora": "qlora", "dora": "qdora"}.get(spec.adapter.method)
    return [(four_bits, "nf4")] if four_bits and shapes.model_type in OWN_MODELS else []


def _budgets(spec: ProjectSpec, workload: Workload) -> Iterator[tuple[int, int, int]]:
    """(micro_batch_tokens, gradient_accumulation_steps, sequence_len): halved until one row fills it."""
    train, times = spec.train, 1
    longest = max(MIN_TOKENS, workload.longest)
    while train.micro_batch_tokens // (2 * times) >= longest:
        times *= 2
        tokens = train.micro_batch_tokens // times
        yield tokens, train.gradient_accumulation_steps * times, min(train.sequence_len, tokens)


def _with(
    spec: ProjectSpec,
    *,
    dtype: str | None = None,
    budget: tuple[int, int, int] | None = None,
    rank: int | None = None,
    targets: tuple[str, ...] | None = None,
    method: str | None = None,
) -> tuple[ProjectSpec, tuple[tuple[str, str], ...], str]:
    settings: list[tuple[str, str]] = []
    effects: list[str] = []
    model, train, adapter = spec.model, spec.train, spec.adapter
    if budget:
        tokens, steps, longest = budget
        train = train.model_copy(
            update={"micro_batch_tokens": tokens, "gradient_accumulation_steps": steps, "sequence_len": longest}
        )
        settings += [("train.micro_batch_tokens", str(tokens)), ("train.gradient_accumulation_steps", str(steps))]
        settings += [("train.sequence_len", str(longest))] if longest < spec.train.sequence_len else []
        effects.append("the same tokens in every step, computed in smaller portions")
    if dtype:
        model = model.model_copy(update={"dtype": dtype})
        settings.append(("model.dtype", dtype))
        effects.append(f"the frozen weights in {dtype}: slightly other numbers")
    if rank:
        adapter = adapter.model_copy(update={"lora_r": rank, "lora_alpha": adapter.lora_alpha * rank / adapter.lora_r})
        settings += [("adapter.lora_r", str(rank)), ("adapter.lora_alpha", f"{adapter.lora_alpha:g}")]
        effects.append("a smaller adapter: it can learn less")
    if targets:
        adapter = adapter.model_copy(update={"lora_target_modules": targets})
        settings.append(("adapter.lora_target_modules", f"[{', '.join(targets)}]"))
        effects.append("adapters on attention only: they can learn less")
    if method:
        adapter = adapter.model_copy(update={"method": method})
        settings.append(("adapter.method", method))
        effects.append(f"{method} instead of {spec.adapter.method}: it can learn less")
    changed = spec.model_copy(update={"model": model, "train": train, "adapter": adapter})
    return changed, tuple(settings), "; ".join(effects)

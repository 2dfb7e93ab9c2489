"""Task metrics on dev cases: what the engine asks of a model in training, and what tells the rungs of a ladder
apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.config.evaluate import EvaluateSpec
from luthier.evaluate.cases import Case, tasks_of
from luthier.graders.grader import Item
from luthier.graders.registry import grader
from luthier.types import Progress, Sampler


def dev_metrics(
    sampler: Sampler, cases: Sequence[Case], spec: EvaluateSpec, schema: dict[str, Any] | None
) -> dict[str, float]:
    """metric name -> figure over `cases`, answered greedily with the cases' own prompts."""
    names = tuple(dict.fromkeys((spec.metric, *spec.metrics)))
    _, items = dev_items(sampler, cases, spec, schema, names)
    return {name: grader(name).figure(items[name]) for name in names}


def dev_items(
    sampler: Sampler,
    cases: Sequence[Case],
    spec: EvaluateSpec,
    schema: dict[str, Any] | None,
    names: Sequence[str],
    progress: Progress | None = None,
) -> tuple[list[str], dict[str, list[Item]]]:
    """The answers, and metric name -> an item for each of them."""
    prompts = [case.prompt for case in cases]
    texts = [one.text for one in sampler.sample(prompts, max_new_tokens=spec.max_new_tokens, progress=progress)]
    references, tasks = [case.reference for case in cases], tasks_of(cases, spec, schema)
    return texts, {name: grader(name).items(texts, references, tasks) for name in names}

"""Task metrics of a model in training, on dev cases: what the engine asks for at each evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.config.evaluate import EvaluateSpec
from luthier.evaluate.cases import Case, tasks_of
from luthier.graders.registry import grader
from luthier.types import Sampler


def dev_metrics(
    sampler: Sampler, cases: Sequence[Case], spec: EvaluateSpec, schema: dict[str, Any] | None
) -> dict[str, float]:
    """metric name -> figure over `cases`, answered greedily with the cases' own prompts."""
    answers = sampler.sample([case.prompt for case in cases], max_new_tokens=spec.max_new_tokens)
    texts, references = [answer.text for answer in answers], [case.reference for case in cases]
    tasks, figures = tasks_of(cases, spec, schema), {}
    for name in dict.fromkeys((spec.metric, *spec.metrics)):
        metric = grader(name)
        figures[name] = metric.figure(metric.items(texts, references, tasks))
    return figures

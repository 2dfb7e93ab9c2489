"""Task metrics of a model in training, on dev cases: what the engine asks for at each evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.config.evaluate import EvaluateSpec
from luthier.evaluate.cases import Case
from luthier.graders.registry import grader
from luthier.types import Sampler


def dev_metrics(
    sampler: Sampler, cases: Sequence[Case], spec: EvaluateSpec, schema: dict[str, Any] | None
) -> dict[str, float]:
    """metric name -> figure over `cases`, answered greedily with the cases' own prompts."""
    answers = sampler.sample([case.prompt for case in cases], max_new_tokens=spec.max_new_tokens)
    figures = {}
    for name in dict.fromkeys((spec.metric, *spec.metrics)):
        metric = grader(name)
        items = [metric.grade(a.text, case.reference, schema) for a, case in zip(answers, cases, strict=True)]
        figures[name] = metric.figure(items)
    return figures

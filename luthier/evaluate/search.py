"""The best prompt, found on dev rows only: all candidates on a few rows, then the best few on more.

Picking the best of 10 equal prompts on 200 items inflates accuracy by 4.9 points (research/eval_data.md, A2 item 1), so
neither the sealed test rows nor the tuned model has any part in it. Ties go to the simpler prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from luthier.config.evaluate import EvaluateSpec
from luthier.evaluate.arms import PromptVariant, build_prompt, draw_examples
from luthier.evaluate.cases import Case, tasks_of
from luthier.graders.grader import Item
from luthier.graders.registry import grader
from luthier.types import Progress, Sampler


@dataclass(frozen=True)
class Candidate:
    """One prompt with what it reached on dev: `figure` of the metric over num_rows rows."""

    variant: PromptVariant
    figure: float
    num_rows: int
    is_finalist: bool


@dataclass(frozen=True)
class SearchResult:
    """The winner, the examples it shows (a prefix of `examples`), and every candidate in the order tried."""

    winner: PromptVariant
    examples: tuple[Case, ...]
    candidates: tuple[Candidate, ...]


def search_prompts(
    sampler: Sampler,
    dev: Sequence[Case],
    train: Sequence[Case],
    spec: EvaluateSpec,
    *,
    schema: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Try shots x instructions with the base model. Without dev rows the case's own prompt wins untried."""
    search = spec.prompt
    examples = draw_examples(train, max(search.shots, default=0), seed=search.seed)
    variants = list(
        dict.fromkeys(PromptVariant(text, min(n, len(examples))) for n in search.shots for text in search.instructions)
    )
    if not dev or not variants:
        return SearchResult(PromptVariant(), (), ())
    ranked_dev = sorted(dev, key=lambda case: hashlib.sha256(f"{search.seed}:{case.id}".encode()).hexdigest())
    first, more = ranked_dev[: search.dev_rows], ranked_dev[search.dev_rows : search.dev_rows + search.final_rows]
    metric = grader(spec.metric)
    finalists = min(search.finalists, len(variants)) if more and len(variants) > 1 else 0
    total, done = len(variants) * len(first) + finalists * len(more), 0
    items: dict[PromptVariant, list[Item]] = {}

    def ask(variant: PromptVariant, cases: Sequence[Case]) -> None:
        nonlocal done
        prompts = [build_prompt(case, variant, examples) for case in cases]
        answers = sampler.sample(
            prompts, max_new_tokens=spec.max_new_tokens, temperature=spec.temperature, seed=spec.seed
        )
        references, tasks = [case.reference for case in cases], tasks_of(cases, spec, schema)
        scored = metric.items([answer.text for answer in answers], references, tasks)
        items.setdefault(variant, []).extend(scored)
        done += len(cases)
        if progress:
            progress(done, total, best=max(metric.figure(scores) for scores in items.values()))

    def rank(variant: PromptVariant) -> tuple[float, int, int]:
        return (-metric.figure(items[variant]), variant.shots, len(variant.instruction))

    for variant in variants:
        ask(variant, first)
    chosen = sorted(variants, key=rank)[:finalists]
    for variant in chosen:
        ask(variant, more)
    winner = min(chosen or variants, key=rank)
    tried = tuple(Candidate(v, metric.figure(items[v]), len(items[v]), v in chosen) for v in variants)
    return SearchResult(winner, tuple(examples[: winner.shots]), tried)

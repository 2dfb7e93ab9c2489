"""Every metric by name. A new one = one function in a file of this room and one line here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.errors import EvaluateError
from luthier.graders.classify import accuracy, label_pair, label_stats, macro_f1
from luthier.graders.exact import exact_match
from luthier.graders.grader import Grader, Item
from luthier.graders.json_fields import json_exact, json_field_accuracy
from luthier.graders.text_overlap import bleu, bleu_counts, bleu_stats, rouge_l
from luthier.graders.token_f1 import token_f1

GRADERS = {
    grader.name: grader
    for grader in (
        Grader("exact_match", "binary", exact_match),
        Grader("token_f1", "graded", token_f1),
        Grader("accuracy", "binary", accuracy),
        Grader("macro_f1", "corpus", label_pair, stats=label_stats, score=macro_f1),
        Grader("json_exact", "binary", json_exact),
        Grader("json_field_accuracy", "graded", json_field_accuracy),
        Grader("rouge_l", "graded", rouge_l),
        Grader("bleu", "corpus", bleu_counts, stats=bleu_stats, score=bleu),
    )
}


def grader(name: str) -> Grader:
    """The grader called `name`; EvaluateError lists those there are."""
    if name not in GRADERS:
        raise EvaluateError(f"there is no metric {name!r}", hint=f"one of: {', '.join(GRADERS)}")
    return GRADERS[name]


def grade(name: str, answer: str, reference: str, *, schema: dict[str, Any] | None = None) -> Item:
    """One item's score: a float in [0, 1], or a list of statistics for corpus metrics."""
    return grader(name).grade(answer, reference, schema)


def figure(
    name: str, answers: Sequence[str], references: Sequence[str], *, schema: dict[str, Any] | None = None
) -> float:
    """A metric over a whole set of answers, in [0, 1]; what `on_eval` reports during training."""
    chosen = grader(name)
    return chosen.figure([chosen.grade(a, r, schema) for a, r in zip(answers, references, strict=True)])

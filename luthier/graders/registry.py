"""Every metric by name. A new one = one function in a file of this room and one line here."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.errors import EvaluateError
from luthier.graders.all_of import all_of
from luthier.graders.classify import accuracy, label_pair, label_stats, macro_f1
from luthier.graders.exact import exact_match
from luthier.graders.grader import Grader, Item, Task
from luthier.graders.grounded import grounded, grounded_problems
from luthier.graders.json_fields import json_exact, json_field_accuracy, json_valid
from luthier.graders.numeric import numeric
from luthier.graders.regex import regex, regex_problems
from luthier.graders.text_overlap import bleu, bleu_counts, bleu_stats, rouge_l
from luthier.graders.token_f1 import token_f1
from luthier.graders.unit_tests import tier_of, unit_tests, unit_tests_all, unit_tests_problems

GRADERS = {
    grader.name: grader
    for grader in (
        Grader("exact_match", "binary", exact_match),
        Grader("token_f1", "graded", token_f1),
        Grader("accuracy", "binary", accuracy),
        Grader("macro_f1", "corpus", label_pair, stats=label_stats, score=macro_f1),
        Grader("json_exact", "binary", json_exact),
        Grader("json_field_accuracy", "graded", json_field_accuracy),
        Grader("json_valid", "binary", json_valid),
        Grader("rouge_l", "graded", rouge_l),
        Grader("bleu", "corpus", bleu_counts, stats=bleu_stats, score=bleu),
        Grader("numeric", "binary", numeric),
        Grader("regex", "binary", regex, problems=regex_problems),
        Grader("grounded", "binary", grounded, problems=grounded_problems),
        Grader(
            "unit_tests",
            "binary",
            unit_tests,
            grade_all=unit_tests_all,
            problems=unit_tests_problems,
            environment=tier_of,
        ),
    )
}
GRADERS["all_of"] = all_of(GRADERS)


def grader(name: str) -> Grader:
    """The grader called `name`; EvaluateError lists those there are."""
    if name not in GRADERS:
        raise EvaluateError(f"there is no metric {name!r}", hint=f"one of: {', '.join(GRADERS)}")
    return GRADERS[name]


def grade(name: str, answer: str, reference: str, task: Task | None = None) -> Item:
    """One item's score: a float in [0, 1], or a list of statistics for corpus metrics."""
    return grader(name).grade(answer, reference, task or Task())


def figure(name: str, answers: Sequence[str], references: Sequence[str], tasks: Sequence[Task] | None = None) -> float:
    """A metric over a whole set of answers, in [0, 1]; what `on_eval` reports during training."""
    chosen = grader(name)
    return chosen.figure(chosen.items(answers, references, tasks or [Task()] * len(answers)))

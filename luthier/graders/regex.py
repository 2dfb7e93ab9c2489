"""A pattern in the answer (evaluate.graders.regex), searched in a process that can be stopped: some patterns take for
ever on some answers, and Python's engine cannot be interrupted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from luthier.errors import EvaluateError
from luthier.graders.grader import Task
from luthier.graders.guard import GuardedReward


def _compare(answer: str, reference: str, task: Task) -> float:
    pattern = re.compile(task.options.regex.pattern)
    found = list(pattern.finditer(answer))
    if not pattern.groups:
        return float(bool(found))
    expected = list(pattern.finditer(reference))
    return float(bool(found) and bool(expected) and found[-1][1] == expected[-1][1])


@cache
def _guarded(timeout_s: float) -> GuardedReward:
    return GuardedReward(_compare, time_limit_s=timeout_s)


def regex(answer: str, reference: str, task: Task | None = None) -> float:
    """1.0 when the pattern's last match has the reference's first group, or (without a group) when it occurs; 0.0 also
    when the search takes longer than timeout_s. EvaluateError without a pattern.
    """
    task = task or Task()
    if not task.options.regex.pattern:
        raise EvaluateError("the metric regex has no pattern", hint="give evaluate.graders.regex.pattern")
    return _guarded(task.options.regex.timeout_s)(answer, reference, Task(options=task.options)).value or 0.0


def regex_problems(references: Sequence[str], tasks: Sequence[Task]) -> list[str]:
    """Per reference, why it cannot serve: it does not match the pattern itself; '' when it does."""
    matches = [regex(reference, reference, task) for reference, task in zip(references, tasks, strict=True)]
    return ["" if match else "it does not match evaluate.graders.regex.pattern" for match in matches]

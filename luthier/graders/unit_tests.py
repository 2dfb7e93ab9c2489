"""Code in answers, judged by the row's own unit tests in the sandbox: pass@1 (https://arxiv.org/abs/2107.03374)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from luthier.errors import EvaluateError
from luthier.graders.grader import Task
from luthier.graders.sandbox.box import SandboxPool, shared_pool
from luthier.graders.sandbox.limits import Limits, Result

_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*(?:```|~~~)[ \t]*$|\Z)", re.S | re.M)
PYTHON = ("python", "py", "python3")


def code_in(answer: str) -> str:
    """The longest block fenced as Python, else the longest fenced block without a language, else the whole answer."""
    blocks = [(language.lower(), text) for language, text in _FENCE.findall(answer)]
    for wanted in (PYTHON, ("",)):
        fitting = [text for language, text in blocks if language in wanted]
        if fitting:
            return max(fitting, key=len)
    return answer


def tests_of(task: Task) -> str:
    """The row's tests as one text. EvaluateError for a row without any."""
    column = task.options.unit_tests.column
    tests = task.columns.get(column)
    if isinstance(tests, list):
        tests = "\n".join(map(str, tests))
    if not isinstance(tests, str) or not tests.strip():
        raise EvaluateError(
            f"a row has no tests in its column {column!r}",
            hint="give every row of dev and test its tests, or name the column in evaluate.graders.unit_tests.column",
        )
    return tests


def _pool(task: Task) -> SandboxPool:
    return shared_pool(tuple(Path(folder) for folder in task.options.unit_tests.modules))


def run_tests(programs: Sequence[str], tasks: Sequence[Task]) -> list[Result]:
    """Runs each program against the tests of its row, side by side. All tasks have the same options."""
    if not tasks:
        return []
    options = tasks[0].options.unit_tests
    limits = Limits(wall_s=options.timeout_s, memory_bytes=options.memory_mb << 20)
    entries = [str(task.columns.get(options.entry_point_column) or "") for task in tasks]
    return _pool(tasks[0]).run_all(zip(programs, map(tests_of, tasks), entries, strict=True), limits)


def unit_tests_all(answers: Sequence[str], references: Sequence[str], tasks: Sequence[Task]) -> list[float]:
    """1.0 for every answer whose code passes all tests of its row."""
    return [float(result.passed) for result in run_tests([code_in(answer) for answer in answers], tasks)]


def unit_tests(answer: str, reference: str, task: Task | None = None) -> float:
    """The same for one answer."""
    return unit_tests_all([answer], [reference], [task or Task()])[0]


def unit_tests_problems(references: Sequence[str], tasks: Sequence[Task]) -> list[str]:
    """Per row, why its tests prove nothing: the reference fails them, or an empty program passes; '' if neither."""
    solved = run_tests([code_in(reference) for reference in references], tasks)
    empty = run_tests([""] * len(tasks), tasks)
    return [
        f"it fails its own tests ({result.status}: {result.problem})" if not result.passed
        else "an empty program passes its tests" if nothing.passed
        else ""
        for result, nothing in zip(solved, empty, strict=True)
    ]  # fmt: skip


def tier_of(task: Task) -> str:
    """Label of the sandbox's layers, for the report."""
    return _pool(task).tier

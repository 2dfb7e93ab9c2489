"""Several metrics at once: an answer is right when every one of them is 1. Why: a reply that may be sent as it is has
to be true and in the right words, and a verdict decides on one figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from luthier.errors import EvaluateError
from luthier.graders.grader import Grader, Task, numbers_of


def all_of(graders: Mapping[str, Grader]) -> Grader:
    """The metric all_of over `graders`; evaluate.graders.all_of names its parts."""

    def parts_of(task: Task) -> list[Grader]:
        if not task.options.all_of:
            raise EvaluateError("the metric all_of has no parts", hint="name them in evaluate.graders.all_of")
        return [graders[name] for name in task.options.all_of]

    def grade_all(answers: Sequence[str], references: Sequence[str], tasks: Sequence[Task]) -> list[float]:
        if not tasks:
            return []
        columns = [numbers_of(part.items(answers, references, tasks)) for part in parts_of(tasks[0])]
        return [float(min(values) == 1.0) for values in zip(*columns, strict=True)]

    def grade(answer: str, reference: str, task: Task | None = None) -> float:
        return grade_all([answer], [reference], [task or Task()])[0]

    def problems(references: Sequence[str], tasks: Sequence[Task]) -> list[str]:
        """Per reference, which part it fails and why; '' when none."""
        found = [""] * len(references)
        for part in parts_of(tasks[0]) if tasks else ():
            if part.problems is not None:
                whys = part.problems(references, tasks)
            else:
                values = numbers_of(part.items(references, references, tasks))
                whys = ["" if value == 1.0 else "it is not right by its own measure" for value in values]
            found = [old or (why and f"{part.name}: {why}") for old, why in zip(found, whys, strict=True)]
        return found

    def environment(task: Task) -> str:
        places = [part.environment(task) for part in parts_of(task) if part.environment]
        return "; ".join(filter(None, places))

    return Grader("all_of", "binary", grade, grade_all=grade_all, problems=problems, environment=environment)

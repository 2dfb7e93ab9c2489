"""Cases: what every arm is asked, and what a right answer is.

A case's prompt is the row's own prompt (system + user turns, exactly what training rendered). If a JSON Schema is given
and the system message does not name every field, a block with one line a field is appended, in every arm alike: so the
arms differ only by what `arms.py` adds, and the base model is never blamed for a format that nobody told it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.chat.schema_prompt import with_schema
from luthier.config.evaluate import EvaluateSpec
from luthier.errors import EvaluateError
from luthier.graders.grader import Task
from luthier.types import Message, Row


@dataclass(frozen=True)
class Case:
    """One question with its reference answer ('' for unlabelled prompts). `group` is the cluster of the statistics.

    columns: the row's other columns, for metrics that read them.
    """

    id: str
    group: str
    prompt: tuple[Message, ...]
    reference: str
    columns: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def question(self) -> str:
        """All user turns as plain text: what the trivial baselines read and the report shows."""
        return "\n".join(message["content"] for message in self.prompt if message["role"] == "user")


def cases_from_rows(rows: Sequence[Row], schema: dict[str, Any] | None = None, *, labelled: bool = True) -> list[Case]:
    """One case a row, in order. Refuses text rows, rows without an answer, and repeated ids, naming the row."""
    cases = []
    seen: set[str] = set()
    for row in rows:
        place = f"row {row.id[:12]} ({row.source}:{row.line})" if row.source else f"row {row.id[:12]}"
        if not row.prompt:
            raise EvaluateError(
                f"{place} has no prompt", hint="plain-text rows cannot be judged: use prompt and answer"
            )
        if labelled and not row.answer:
            raise EvaluateError(f"{place} has no answer to compare with", hint="give prompts alone as data.unlabelled")
        if row.id in seen:
            raise EvaluateError(
                f"{place} occurs twice", hint="run `luthier prepare` again: it removes exact duplicates"
            )
        seen.add(row.id)
        prompt = with_schema(row.prompt, schema) if schema else tuple(row.prompt)
        cases.append(Case(row.id, row.group or row.id, prompt, row.answer if labelled else "", row.columns))
    return cases


def tasks_of(cases: Sequence[Case], spec: EvaluateSpec, schema: dict[str, Any] | None) -> list[Task]:
    """What graders are told about each case besides its reference answer."""
    return [Task(schema, case.columns, spec.graders, case.prompt) for case in cases]

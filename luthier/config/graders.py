"""Section `evaluate.graders`: options of the metrics that have some."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from luthier.config.base import Spec


class UnitTestsSpec(Spec):
    """unit_tests: the answer's code is run against the row's tests, in the sandbox (docs/sandbox.md)."""

    column: str = "tests"
    """Column that holds a row's tests: Python text, or a list of statements."""
    entry_point_column: str = "entry_point"
    """Column with the name that a `check(candidate)` function of the tests is called with; rows need not have it."""
    modules: tuple[str, ...] = ()
    """Folders (relative to the project file) of Python modules that answers and tests may import, read-only."""
    timeout_s: Annotated[float, Field(gt=0, le=600)] = 10.0
    """Wall time of one answer with its tests; an answer that takes longer is wrong."""
    memory_mb: Annotated[int, Field(ge=64, le=65536)] = 512
    """Address space of one answer (2^20 bytes each)."""


class RegexSpec(Spec):
    """regex: the answer is searched for a pattern."""

    pattern: str = ""
    """A Python regular expression. With a group, the last match's first group must equal that of the reference; without
    one, it must occur."""
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 2.0
    """An answer whose search takes longer is wrong."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return pattern


class NumericSpec(Spec):
    """numeric: the final number of the answer (after `####`, or in `\\boxed{}`, if given) and the reference's."""

    tolerance: Annotated[float, Field(ge=0)] = 0.0
    """Largest difference that is still right."""
    relative_tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The same as a share of the reference; the larger of the two counts."""


class GroundedSpec(Spec):
    """grounded: every date, amount, number and name of the answer stands in its prompt, and its key facts are said."""

    must_say: str = ""
    """Column with a row's key facts, a text or a list of texts, each to stand in the answer word for word (but for case
    and punctuation); empty = only claims are checked."""
    names: bool = True
    """Whether capitalised words inside a sentence are claims; false for a language that capitalises its nouns."""


Part = Literal[
    "exact_match", "token_f1", "accuracy", "json_exact", "json_field_accuracy", "json_valid", "rouge_l", "numeric",
    "regex", "unit_tests", "grounded",
]  # fmt: skip


class GradersSpec(Spec):
    """Options of the metrics that have some."""

    unit_tests: UnitTestsSpec = UnitTestsSpec()
    regex: RegexSpec = RegexSpec()
    numeric: NumericSpec = NumericSpec()
    grounded: GroundedSpec = GroundedSpec()
    all_of: tuple[Part, ...] = ()
    """Metrics of which every one must be 1 for the metric all_of."""

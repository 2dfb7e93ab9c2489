"""Section `evaluate.graders`: options of the metrics that have some."""

import re
from typing import Annotated

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


class GradersSpec(Spec):
    """Options of the metrics that have some."""

    unit_tests: UnitTestsSpec = UnitTestsSpec()
    regex: RegexSpec = RegexSpec()
    numeric: NumericSpec = NumericSpec()

"""The final number of an answer, as GSM8K and MATH ask for it (https://arxiv.org/abs/2110.14168: `#### 42`)."""

from __future__ import annotations

import re
from decimal import Decimal

from luthier.errors import EvaluateError
from luthier.graders.grader import Task

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(rf"(?<![\w.])[-+\u2212]?(?:{_DIGITS})(?:[eE][-+]?\d{{1,3}})?")
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")


def final_number(text: str) -> Decimal | None:
    """The first number after the last `####`, else the last one in the last `\\boxed{}`, else the last one at all."""
    if "####" in text:
        found = _NUMBER.findall(text.rpartition("####")[2])
        return _value(found[0]) if found else None
    boxed = _BOXED.findall(text)
    found = _NUMBER.findall(boxed[-1] if boxed else text)
    return _value(found[-1]) if found else None


def _value(digits: str) -> Decimal:
    return Decimal(digits.replace(",", "").replace("\u2212", "-"))


def numeric(answer: str, reference: str, task: Task | None = None) -> float:
    """1.0 when the final numbers agree within evaluate.graders.numeric. EvaluateError for a reference without one."""
    options = (task or Task()).options.numeric
    expected = final_number(reference)
    if expected is None:
        raise EvaluateError(
            f"a reference answer holds no number: {reference[:80]!r}", hint="use exact_match for answers that are words"
        )
    given = final_number(answer)
    allowed = max(Decimal(options.tolerance), Decimal(options.relative_tolerance) * abs(expected))
    return float(given is not None and abs(given - expected) <= allowed)

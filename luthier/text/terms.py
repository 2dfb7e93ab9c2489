"""Lists of words that a user supplies, found as whole words whatever their case.

What: one word or phrase a line, `#` starts a comment. Why by path and none shipped: which words are unfit depends on
who will read the answers, and a list that somebody else made hides its judgement.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from luthier.errors import DataError


def read_terms(path: Path) -> tuple[str, ...]:
    """The terms of a list file. Raises DataError when it cannot be read or holds none."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the word list cannot be read ({error})", hint="give a UTF-8 file") from error
    terms = tuple(dict.fromkeys(line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()))
    if not terms:
        raise DataError(f"{path}: the word list is empty", hint="one word or phrase a line; # starts a comment")
    return terms


def term_pattern(terms: Iterable[str]) -> re.Pattern[str]:
    """A pattern for any of `terms` as whole words, longest first; spaces match any white space."""
    ordered = sorted(terms, key=len, reverse=True)
    forms = "|".join(r"\s+".join(re.escape(word) for word in term.split()) for term in ordered)
    return re.compile(rf"(?<!\w)(?:{forms})(?!\w)", re.IGNORECASE)

"""One thing that `luthier doctor` looked at: what was found, why it matters, how to mend it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "note", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """verdict: `problem` would break a run, `warning` makes it slow or its results less sure, `note` is good to know.

    why and mend are empty when all is well.
    """

    what: str
    found: str
    verdict: Verdict = "ok"
    why: str = ""
    mend: str = ""

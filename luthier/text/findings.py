"""A place in a text that a detector points at, and texts with such places replaced.

What: `Finding` is kind + span; `keep_apart` resolves overlaps; `redact` puts one placeholder per value, the same value
always the same placeholder within one row, so that "who is who" survives for the model. The value itself is never
stored: a report that quotes what it found spreads it.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Finding:
    """text[start:end] is of this kind (email, phone, token, ...)."""

    start: int
    end: int
    kind: str


def keep_apart(found: Iterable[Finding]) -> list[Finding]:
    """The findings in order of place without overlaps: of two that meet, the one that was found first stays."""
    kept: list[Finding] = []
    for finding in found:
        at = bisect(kept, finding)
        if (not at or kept[at - 1].end <= finding.start) and (at == len(kept) or finding.end <= kept[at].start):
            kept.insert(at, finding)
    return kept


def redact(text: str, findings: Sequence[Finding], names: dict[tuple[str, str], str]) -> str:
    """`text` with every finding replaced by [KIND_n]. `names`: (kind, value) -> placeholder of this row; filled in."""
    parts, at = [], 0
    for finding in sorted(findings):
        value = text[finding.start : finding.end]
        number = sum(kind == finding.kind for kind, _ in names) + 1
        name = names.setdefault((finding.kind, value), f"[{finding.kind.upper()}_{number}]")
        parts += [text[at : finding.start], name]
        at = finding.end
    return "".join([*parts, text[at:]])

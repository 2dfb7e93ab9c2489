"""Text as a comparison sees it, and text as training may see it.

What: `normalise` folds away everything that does not make two texts different to a reader (case, width forms, composed
or decomposed accents, spaces, invisible characters); `scrub` takes out only what no text should carry (line ends of
other systems, byte order marks, control characters) and counts it. Why two: duplicates are found on the folded form,
the model is trained on the scrubbed one, so that nothing a user typed is lost.
Source: Unicode UAX #15 (normal forms), general categories Cc and Cf.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_SPACES = re.compile(r"\s+")
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x84\x86-\x9f]")
_INVISIBLE = re.compile(r"[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")


def is_blank(text: str) -> bool:
    """Is there nothing to see: white space and invisible characters alone?"""
    return not text.strip() or (not text.isascii() and not _INVISIBLE.sub("", text).strip())


def normalise(text: str) -> str:
    """`text` folded for comparison: NFKC, casefold, no invisible characters, single spaces, no outer space."""
    if text.isascii():
        return " ".join(text.lower().split())
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _SPACES.sub(" ", _INVISIBLE.sub("", folded)).strip()


def scrub(text: str, counts: Counter[str] | None = None, *, keeps_space: bool = False) -> str:
    """`text` fit for training; what was changed is added to `counts` by name (one per text, not per character).

    Line ends become \\n; byte order marks and control characters (tab and newline stay) go; outer space goes unless
    keeps_space (code, Markdown, JSON). Invisible and direction marks are counted but left alone: in some scripts they
    are spelling. So are characters that were lost before (U+FFFD): nobody knows what stood there.
    """
    found = counts if counts is not None else Counter()
    clean = text.replace("\r\n", "\n").replace("\r", "\n")
    found["line ends made \\n"] += clean != text
    bare = clean if clean.isprintable() else _CONTROLS.sub("", clean.replace("\ufeff", ""))
    found["control characters removed"] += bare != clean
    stripped = bare if keeps_space else bare.strip()
    found["outer space removed"] += stripped != bare
    if stripped.isascii():
        return stripped
    found["invisible or direction marks (kept)"] += bool(_INVISIBLE.search(stripped))
    found["texts with lost characters, U+FFFD (kept)"] += "\ufffd" in stripped
    return stripped

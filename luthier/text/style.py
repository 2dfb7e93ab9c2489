"""How a text sounds, by signs that can be counted: length, who speaks, formality, lists, reading grade.

What: no model judges here; each sign is a rule that a reader can check. English only: pronouns, contractions and
syllables of other languages are not known. Source: J. Kincaid et al. (1975) for the grade, 0.39 words/sentence + 11.8
syllables/word - 15.59; syllables are counted as groups of vowels, without a silent e.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_FIRST = {"i", "me", "my", "mine", "myself", "we", "us", "our", "ours", "ourselves", "i'm", "i've", "i'll", "i'd",
          "we're", "we've", "we'll", "we'd", "let's"}  # fmt: skip
_SECOND = {"you", "your", "yours", "yourself", "yourselves", "you're", "you've", "you'll", "you'd"}
_CASUAL = re.compile(
    r"\w(?:n['’]t|['’](?:re|ve|ll|m|d))\b|!|[\U0001f300-\U0001faff☺☹❤]|[:;]-?[)(DP]"
    r"|\b(?:hey|hi|yeah|yep|nope|gonna|wanna|gotta|kinda|ok|okay|cool|awesome|guys|lol|btw|thx|pls)\b",
    re.IGNORECASE,
)
_BULLET = re.compile(r"^\s*(?:[-*•‣●]|\d{1,2}[.)])\s+\S", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)|\n{2,}")


@dataclass(frozen=True)
class Style:
    """words: how many; person: first, second or third; grade: Flesch-Kincaid, 0 at least, None without words."""

    words: int
    person: str
    casual: bool
    bullets: bool
    grade: float | None


def style_of(text: str) -> Style:
    """The style of one text. The commoner of first and second person counts; third is neither."""
    words = [word.lower().replace("’", "'") for word in _WORD.findall(text)]
    first, second = (sum(word in some for word in words) for some in (_FIRST, _SECOND))
    person = "third" if not first + second else "first" if first >= second else "second"
    return Style(len(words), person, bool(_CASUAL.search(text)), bool(_BULLET.search(text)), _grade(text, words))


def _grade(text: str, words: list[str]) -> float | None:
    if not words:
        return None
    num_sentences = max(len(_SENTENCE_END.findall(text.strip())), 1)
    syllables = sum(map(_syllables, words))
    return max(0.39 * len(words) / num_sentences + 11.8 * syllables / len(words) - 15.59, 0.0)


def _syllables(word: str) -> int:
    groups = len(re.findall(r"[aeiouyà-ÿ]+", word))
    silent = word.endswith("e") and not word.endswith("le") and groups > 1
    return max(groups - silent, 1)

"""Signs of a bad text that need no model: repetition, unfinished answers, refusals, broken code, and for plain
documents the rules that large web corpora were filtered by.

What: `answer_flags` for the answers of a chat, `document_flags` for running English text. Every flag is a name that
says what is wrong; thresholds are the published ones and stand here as constants.
Sources: J. Rae et al. (Gopher, 2021), table A1; C. Raffel et al. (C4, 2020); G. Penedo et al. (FineWeb, 2024).
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Sequence

STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
MIN_WORDS, MAX_WORDS = 50, 100_000
MEAN_WORD_CHARS = (3.0, 10.0)
MAX_SYMBOLS_PER_WORD = 0.1
MAX_BULLET_LINES, MAX_ELLIPSIS_LINES = 0.9, 0.3
MIN_ALPHA_WORDS = 0.8
MAX_DUPLICATE_LINES = 0.3
MIN_PUNCTUATED_LINES, MAX_SHORT_LINES, SHORT_LINE_CHARS, MAX_DUPLICATE_LINE_CHARS = 0.12, 0.67, 30, 0.01
DUPLICATE_NGRAM_CHARS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
TOP_NGRAM_CHARS = {2: 0.20, 3: 0.18, 4: 0.16}
MIN_WORDS_FOR_REPETITION = 50
MAX_LOOP_CHARS = 0.5

_WORD = re.compile(r"\S+")
_FENCE = re.compile(r"```([\w+-]*)[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)
_REFUSAL = re.compile(
    r"\b(?:as an? (?:ai|artificial intelligence)(?: language)? (?:model|assistant)"
    r"|i(?:'m| am) (?:sorry|afraid),? (?:but )?(?:i )?(?:can(?:no|')t|am unable|am not able)"
    r"|i (?:can(?:no|')t|am unable to|am not able to) (?:assist|help|comply|fulfil|provide) )",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(r"\blorem ipsum\b|\[insert [\w ]+\]|\b(?:todo|fixme|tbd)\b[:.]", re.IGNORECASE)
_OPEN_END = re.compile(r"(?:,|\b(?:and|or|but|the|a|an|of|to|with|for|in|because|which))\s*$", re.IGNORECASE)


def answer_flags(answer: str) -> list[str]:
    """What is wrong with an answer, by name; [] when nothing is. The kind of an answer does not matter: a label, a JSON
    object and an essay all pass unless they show one of these."""
    words = _WORD.findall(answer)
    loops = len(words) >= MIN_WORDS_FOR_REPETITION and _loops(words)
    flags = ["repeats itself"] if loops else []
    if "```" in answer:
        flags += _code_flags(answer)
    elif _OPEN_END.search(answer) and len(answer) > 60:
        flags.append("ends in the middle")
    if _REFUSAL.search(answer[:300]):
        flags.append("refuses")
    if _PLACEHOLDER.search(answer):
        flags.append("placeholder left in")
    return flags


def _code_flags(text: str) -> list[str]:
    flags = ["unclosed code block"] if text.count("```") % 2 else []
    for language, body in _FENCE.findall(text):
        try:
            if language.lower() in ("python", "py", "python3"):
                ast.parse(body)
            elif language.lower() == "json":
                json.loads(body)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            flags.append(f"{language.lower()} block does not parse")
    return flags


def document_flags(text: str) -> list[str]:
    """What is wrong with a plain English document by the rules of Gopher, C4 and FineWeb, by name."""
    words = _WORD.findall(text)
    if len(words) < MIN_WORDS:
        return [f"under {MIN_WORDS} words"]
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    mean_chars = sum(map(len, words)) / len(words)
    symbols = text.count("#") + text.count("...") + text.count("…")
    flags = {
        f"over {MAX_WORDS:,} words": len(words) > MAX_WORDS,
        "odd mean word length": not MEAN_WORD_CHARS[0] <= mean_chars <= MEAN_WORD_CHARS[1],
        "many symbols": symbols / len(words) > MAX_SYMBOLS_PER_WORD,
        "few words with letters": _share(words, lambda w: any(map(str.isalpha, w))) < MIN_ALPHA_WORDS,
        "hardly a common English word": len(STOP_WORDS & {word.lower().strip(".,;:!?") for word in words}) < 2,
        "mostly bullets": _share(lines, lambda line: line[0] in "-*•‣●") > MAX_BULLET_LINES,
        "lines end in an ellipsis": _share(lines, lambda line: line.endswith(("...", "…"))) > MAX_ELLIPSIS_LINES,
        "placeholder left in": _PLACEHOLDER.search(text) is not None,
        "repeats itself": _repeats(words),
    }
    return [name for name, is_so in flags.items() if is_so] + _line_flags(lines)


def _line_flags(lines: Sequence[str]) -> list[str]:
    """The rules on lines; one line says nothing about lines."""
    if len(lines) < 4:
        return []
    repeated = [line for line, count in Counter(lines).items() for _ in range(count - 1)]
    flags = {
        "repeated lines": len(repeated) / len(lines) > MAX_DUPLICATE_LINES
        or sum(map(len, repeated)) / sum(map(len, lines)) > MAX_DUPLICATE_LINE_CHARS,
        "lines without an end": _share(lines, lambda line: line[-1] in ".!?\"'”’") < MIN_PUNCTUATED_LINES,
        "mostly short lines": _share(lines, lambda line: len(line) < SHORT_LINE_CHARS) > MAX_SHORT_LINES,
    }
    return [name for name, is_so in flags.items() if is_so]


def _repeats(words: Sequence[str]) -> bool:
    """Gopher's repetition rules: too many characters in the commonest 2- to 4-gram, or in repeated 5- to 10-grams."""
    if len(words) < MIN_WORDS_FOR_REPETITION:
        return False
    num_chars = sum(map(len, words))
    for size, most in TOP_NGRAM_CHARS.items():
        top, count = Counter(zip(*(words[i:] for i in range(size)), strict=False)).most_common(1)[0]
        if count > 2 and count * sum(map(len, top)) / num_chars > most:
            return True
    return any(_repeated_chars(words, size) / num_chars > most for size, most in DUPLICATE_NGRAM_CHARS.items())


def _loops(words: Sequence[str]) -> bool:
    """Whether most of a text is 5-grams it has said before: reasoning repeats itself, a loop does nothing else."""
    return _repeated_chars(words, 5) / sum(map(len, words)) > MAX_LOOP_CHARS


def _repeated_chars(words: Sequence[str], size: int) -> int:
    """Characters that lie in an n-gram which stood before, each counted once."""
    seen: set[tuple[str, ...]] = set()
    covered_to = num = 0
    for start in range(len(words) - size + 1):
        gram = tuple(words[start : start + size])
        if gram in seen:
            num += sum(map(len, words[max(start, covered_to) : start + size]))
            covered_to = start + size
        seen.add(gram)
    return num


def _share(things: Sequence[str], test) -> float:
    return sum(map(test, things)) / max(len(things), 1)

"""Several answers to one prompt with their ranks, scores or thumbs, read as the best one against the worst.

A rank of 1 is the best, a high score is, a thumb is up or down; of equals the first counts. The answers stand in one
list: objects with their own rank, score or thumb, or texts with a column of those beside it. A row stays one row: of
more than two answers the others are kept beside it, in their column.
Sources: Nectar (answers with a rank; Axolotl's zephyr.nectar), UltraFeedback (completions with a score),
OpenHermesPreferences (candidates_completions and ranks); best against worst as PairRM's authors pair them.
"""

from __future__ import annotations

import math
from typing import Any

from luthier.data.formats.format import (
    CHAT,
    SYSTEM_KEYS,
    Content,
    Format,
    Keys,
    Mapping,
    found,
    turn_list,
    untold,
)
from luthier.data.formats.pairs import read_prompt
from luthier.data.formats.preference import asked, compared, start_of_sides
from luthier.data.turns import RowError, parsed
from luthier.types import Message

ANSWERS_KEYS = ("answers", "responses", "candidates", "completions", "candidates_completions")
TEXT_KEYS = ("answer", "response", "text", "content", "completion", "output")
RANK_KEYS, SCORE_KEYS = ("rank",), ("score", "rating", "overall_score", "thumb")
RANKS_KEYS, SCORES_KEYS = ("ranks", "rank"), ("scores", "score", "ratings", "thumbs")
_THUMBS = {"up": 1.0, "down": 0.0}


def _first(keys: tuple[str, ...], value: dict[str, Any]) -> str:
    return next((key for key in keys if key in value), "")


def _recognise(keys: Keys, needs_answer: bool) -> dict[str, str] | None:
    prompt = asked(keys)
    answers = next((name for name in ANSWERS_KEYS if isinstance(keys.value(name), list)), "")
    if not (prompt and answers and needs_answer):
        return None
    columns = prompt | found(answers=keys.first((answers,)), system=keys.first(SYSTEM_KEYS))
    listed = keys.value(answers)
    if all(isinstance(one, dict) and _first(RANK_KEYS + SCORE_KEYS, one) and _first(TEXT_KEYS, one) for one in listed):
        return columns if listed else None
    beside = found(ranks=keys.first(RANKS_KEYS)) or found(scores=keys.first(SCORES_KEYS))
    return columns | beside if beside and all(isinstance(one, str) for one in listed) else None


def _read(row: dict[str, Any], mapping: Mapping, needs_answer: bool) -> Content:
    name = mapping.keys["answers"]
    listed = parsed(row.get(name))
    if not isinstance(listed, list) or len(listed) < 2:
        raise RowError(f"column {name!r} is not a list of two or more answers")
    texts, places = _listed(listed) if isinstance(listed[0], dict) else _parallel(listed, row, mapping)
    best, worst = places.index(min(places)), places.index(max(places))
    if best == worst:
        raise RowError("all answers have the same rank: none is better")
    sides: list[tuple[Message, ...]] = [({"role": "assistant", "content": texts[place]},) for place in (best, worst)]
    content = compared(row, mapping, read_prompt(row, mapping), *sides)
    return Content(content.messages, rejected=content.rejected, beside=(name,) if len(listed) > 2 else ())


def _listed(listed: list[Any]) -> tuple[list[str], list[float]]:
    """(texts, places; the lowest place is the best) of objects that hold both."""
    by = next((keys for keys in (RANK_KEYS, SCORE_KEYS) if _first(keys, listed[0])), RANK_KEYS)
    texts, places = [], []
    for number, one in enumerate(listed, start=1):
        text = one.get(_first(TEXT_KEYS, one)) if isinstance(one, dict) else None
        if not isinstance(text, str):
            raise RowError(f"answer {number} has no text")
        texts.append(text)
        places.append(_place(one.get(_first(by, one)), number, is_score=by == SCORE_KEYS))
    return texts, places


def _parallel(listed: list[Any], row: dict[str, Any], mapping: Mapping) -> tuple[list[str], list[float]]:
    """The same of texts whose ranks or scores stand in a column of their own."""
    given = parsed(row.get(mapping.keys.get("ranks") or mapping.keys.get("scores", "")))
    if not isinstance(given, list) or len(given) != len(listed) or not all(isinstance(one, str) for one in listed):
        raise RowError("the answers and their ranks are not two lists of the same length")
    is_score = "ranks" not in mapping.keys
    return listed, [_place(value, number, is_score=is_score) for number, value in enumerate(given, start=1)]


def _place(value: Any, number: int, *, is_score: bool) -> float:
    if is_score and isinstance(value, str):
        value = _THUMBS.get(value.strip().lower(), value)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return -float(value) if is_score else float(value)
    raise RowError(f"answer {number} has no rank: {str(value)[:40]!r}, expected a number or a thumb (up, down)")


def _write(content: Content) -> dict[str, Any]:
    start = start_of_sides(content.messages)
    prompt, sides = content.messages[:start], (content.messages[start:], content.rejected)
    if any(len(side) != 1 for side in sides):
        raise RowError("ranked cannot hold: answers of several turns")
    answers = [{"answer": side[0]["content"], "rank": rank} for rank, side in enumerate(sides, start=1)]
    return {"prompt": prompt[0]["content"] if _is_plain(prompt) else untold(prompt), "answers": answers}


def _is_plain(prompt: tuple[Message, ...]) -> bool:
    return len(prompt) == 1 and turn_list(prompt[0]["content"]) is None and bool(prompt[0]["content"].strip())


RANKED = Format(
    "ranked",
    "Several answers with ranks (1 is best), scores or thumbs (up, down): the best against the worst, the others kept "
    "beside the row",
    {"prompt": "prompt", "answers": "answers", "ranks": "ranks", "scores": "scores", "system": "system",
     "input": "input", "role": "", "content": ""},
    _recognise,
    _read,
    CHAT | {"rejected side", "earlier answers untrained"},
    _write,
    preference=True,
    needs="rejected side",
)  # fmt: skip

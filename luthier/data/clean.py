"""One row cleaned, or the reason why it cannot be used.

What: repairs damaged encodings (data.checks.encoding), scrubs every text (line ends, control characters, outer space;
never what stands inside: white space is meaning in code, Markdown and JSON), then checks lengths in characters and
answers. Everything changed or noticed is counted by name for the report; nothing is changed silently.
"""

from __future__ import annotations

import re
from collections import Counter

from luthier.config.data import DataSpec
from luthier.data.turns import RowError
from luthier.data.written import KEEPS_SPACE, MIN_ANSWER_CHARS, MIN_DOCUMENT_CHARS, check_parses
from luthier.text.normalise import is_blank, normalise, scrub
from luthier.text.repair import repair
from luthier.types import Message

_CONTROL_TOKEN = re.compile(r"<\|[a-z_0-9]{2,30}\|>|\[/?INST\]|</?s>|<(?:start|end)_of_turn>")


def clean_content(
    messages: tuple[Message, ...],
    text: str,
    spec: DataSpec,
    counts: Counter[str],
    *,
    needs_answer: bool = True,
    is_document: bool = False,
) -> tuple[tuple[Message, ...], str]:
    """(messages, text) scrubbed. is_document: the text is a whole file. Raises RowError: empty, too short, too long by
    the limits of `spec`, or not the language that the answers are declared to be written in."""
    language = spec.answer_language
    keeps_space = KEEPS_SPACE[language] or is_document
    if not messages:
        clean = _mend(text, spec, counts, keeps_space)
        low = spec.min_answer_chars if spec.min_answer_chars is not None else MIN_DOCUMENT_CHARS if is_document else 1
        _check_length("text", clean, max(spec.min_chars, low, 1), spec.max_chars)
        _notice(clean, counts)
        return (), clean
    least = MIN_ANSWER_CHARS[language] if spec.min_answer_chars is None else spec.min_answer_chars
    turns: tuple[Message, ...] = tuple(
        {**m, "content": _mend(m["content"], spec, counts, keeps_space)} for m in messages
    )
    for number, turn in enumerate(turns, start=1):
        last = needs_answer and number == len(turns)
        name = "answer" if last else _turn_name(turn["role"], number, len(turns))
        low = least if last else spec.min_chars if turn["role"] == "user" else 1
        low = 0 if "tool_calls" in turn or turn["role"] == "tool" else low
        _check_length(name, turn["content"], low, spec.max_chars)
        if turn["role"] == "assistant" and turn["content"] and needs_answer and turn.get("train") is not False:
            check_parses(turn["content"], language)
        _notice(turn["content"], counts)
    if needs_answer and len(turns) > 1 and normalise(turns[-1]["content"]) == normalise(turns[-2]["content"]):
        counts["answers that repeat the prompt (kept)"] += 1
    return turns, ""


def _turn_name(role: str, number: int, num_turns: int) -> str:
    if role == "system":
        return "system message"
    return f"{role} turn {number}" if num_turns > 3 else "prompt"


def _mend(text: str, spec: DataSpec, counts: Counter[str], keeps_space: bool) -> str:
    policy = spec.checks.encoding
    repaired = repair(text) if policy != "off" else text
    if repaired != text:
        counts["damaged encoding repaired" if policy == "repair" else "damaged encoding (kept)"] += 1
    return scrub(repaired if policy == "repair" else text, counts, keeps_space=keeps_space)


def _check_length(name: str, text: str, low: int, high: int) -> None:
    if low > 0 and is_blank(text):
        raise RowError(f"empty {name}")
    if len(text) < low:
        raise RowError(f"{name} too short: {len(text)} characters, the least is {low}")
    if len(text) > high:
        raise RowError(f"{name} too long: {len(text):,} characters, the most is {high:,}")


def _notice(text: str, counts: Counter[str]) -> None:
    counts["texts with a literal control token (kept as text)"] += bool(_CONTROL_TOKEN.search(text))

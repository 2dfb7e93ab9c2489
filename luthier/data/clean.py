"""One row cleaned, or the reason why it cannot be used.

What: scrubs every text (line ends, control characters, outer space), then checks lengths in characters and answers.
Everything changed or noticed is counted by name for the report; nothing is changed silently.
"""

from __future__ import annotations

import re
from collections import Counter

from luthier.config.data import DataSpec
from luthier.data.turns import RowError
from luthier.text.normalise import normalise, scrub
from luthier.types import Message

_CONTROL_TOKEN = re.compile(r"<\|[a-z_0-9]{2,30}\|>|\[/?INST\]|</?s>|<(?:start|end)_of_turn>")


def clean_content(
    messages: tuple[Message, ...], text: str, spec: DataSpec, counts: Counter[str], *, needs_answer: bool = True
) -> tuple[tuple[Message, ...], str]:
    """(messages, text) scrubbed. Raises RowError: empty, too short, or too long by the limits of `spec`."""
    if not messages:
        clean = scrub(text, counts)
        _check_length("text", clean, max(spec.min_chars, 1), spec.max_chars)
        _notice(clean, counts)
        return (), clean
    turns: tuple[Message, ...] = tuple({**m, "content": scrub(m["content"], counts)} for m in messages)
    for number, turn in enumerate(turns, start=1):
        last = needs_answer and number == len(turns)
        name = "answer" if last else f"{turn['role']} turn {number}" if len(turns) > 3 else "prompt"
        low = spec.min_answer_chars if last else spec.min_chars if turn["role"] == "user" else 1
        low = 0 if "tool_calls" in turn or turn["role"] == "tool" else low
        _check_length(name, turn["content"], low, spec.max_chars)
        _notice(turn["content"], counts)
    if needs_answer and len(turns) > 1 and normalise(turns[-1]["content"]) == normalise(turns[-2]["content"]):
        counts["answers that repeat the prompt (kept)"] += 1
    return turns, ""


def _check_length(name: str, text: str, low: int, high: int) -> None:
    if not text and low > 0:
        raise RowError(f"empty {name}")
    if len(text) < low:
        raise RowError(f"{name} too short: {len(text)} characters, the least is {low}")
    if len(text) > high:
        raise RowError(f"{name} too long: {len(text):,} characters, the most is {high:,}")


def _notice(text: str, counts: Counter[str]) -> None:
    counts["texts with a literal control token (kept as text)"] += bool(_CONTROL_TOKEN.search(text))

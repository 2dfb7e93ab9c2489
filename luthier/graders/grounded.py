"""Grounding without a judge model: what an answer claims stands in its prompt, and what it must say is said.

What: a claim is something that can be looked up word for word: a date, an amount with its sign, a number (also in
words, "one" excepted: it is mostly a pronoun) or a name, which is a capitalised word inside a sentence. A claim that
the prompt (system message, facts, all earlier turns) does not hold is ungrounded. Day and month go together and a sign
belongs to its number: "3 April" is not grounded by "3 March ... 6 April", nor "£14" by "14 days". Why the key facts
too: an answer that claims nothing is grounded and useless.
What it cannot see: a wrong word in lower case, a true figure about the wrong thing (the key facts catch that one), a
name that begins its sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from luthier.errors import EvaluateError
from luthier.graders.grader import Task
from luthier.text.normalise import normalise

_SMALL = [
    "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen",
    "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_VALUES = {word: 2 + i for i, word in enumerate(_SMALL)} | {word: 20 + 10 * i for i, word in enumerate(_TENS)}
_SPELLED = re.compile(rf"\b(?:({'|'.join(_TENS)})(?:[- ](one|{'|'.join(_SMALL[:8])}))?|({'|'.join(_SMALL)}))\b", re.I)
_MONTHS: list[str] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
_MONTH = (
    r"(Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?"
    r"|Nov(?:ember)?|Dec(?:ember)?)"
)
_DAY = r"(\d{1,2})(?:st|nd|rd|th)?"
_DATE = re.compile(rf"\b(?:{_DAY}(?:\s+of)?\s+{_MONTH}|{_MONTH}\s+{_DAY}|\d{{4}}-(\d\d)-(\d\d))\b")
_NUMBER = re.compile(r"([£$€]\s?)?(\d{1,3}(?:,\d{3})+(?!\d)|\d+)(\.\d+)?(\s?[%€])?")
_WORD = re.compile(r"[^\W\d_][\w'’-]*")
_LIST_MARK = re.compile(r"^\s*\d{1,2}[.)]\s", re.MULTILINE)
_OPENING = " \t\"'“‘(*•-"
_MAX_OPENING = 16
_NO_NAMES = {"i", "i'm", "i've", "i'll", "i'd", "ok"}
_TOKEN = re.compile(r"[£$€]?\d+(?:[.,]\d+)*%?|\w+")


def ungrounded(answer: str, prompt: str, *, names: bool = True) -> list[str]:
    """The claims of `answer` that `prompt` does not hold, sorted: dates as "3 Mar", names in lower case."""
    text, known = _in_digits(_LIST_MARK.sub("", answer)), _in_digits(prompt)
    claimed = set(_dates(text))
    text, held = _DATE.sub(" ", text), set(_dates(known))
    claimed |= {signed for signed, _ in _numbers(text)}
    held |= {form for forms in _numbers(known) for form in forms}
    if names:
        claimed |= set(_names(text))
        held |= {_folded(word) for word in _WORD.findall(known)}
    return sorted(claimed - held)


def unsaid(answer: str, key_facts: Sequence[str]) -> list[str]:
    """The key facts whose words and numbers do not stand in `answer` in a row; case and punctuation do not count."""
    said = f" {' '.join(_tokens(answer))} "
    return [fact for fact in key_facts if f" {' '.join(_tokens(fact))} " not in said]


def grounded(answer: str, reference: str, task: Task | None = None) -> float:
    """1.0 when nothing that the answer claims is missing from the prompt and it says the row's key facts
    (evaluate.graders.grounded); 0.0 for an empty answer. EvaluateError for a row without the column of key facts.
    """
    return float(not _why(answer, task or Task()))


def grounded_problems(references: Sequence[str], tasks: Sequence[Task]) -> list[str]:
    """Per reference, why it would be wrong itself; '' when it would not."""
    return [_why(reference, task) for reference, task in zip(references, tasks, strict=True)]


def _why(answer: str, task: Task) -> str:
    options = task.options.grounded
    if not answer.strip():
        return "it is empty"
    prompt = "\n".join(message["content"] for message in task.prompt)
    invented = ungrounded(answer, prompt, names=options.names)
    if invented:
        return f"it claims what its prompt does not hold: {', '.join(invented)}"
    missing = unsaid(answer, _key_facts(task)) if options.must_say else []
    return f"it does not say {missing[0]!r}" if missing else ""


def _key_facts(task: Task) -> list[str]:
    column = task.options.grounded.must_say
    facts = task.columns.get(column)
    facts = [facts] if isinstance(facts, str) else facts
    if not isinstance(facts, list) or not all(isinstance(fact, str) for fact in facts):
        raise EvaluateError(
            f"a row has no key facts in its column {column!r}",
            hint="give every row of dev and test a text or a list of texts (an empty one if nothing must be said), or "
            "leave evaluate.graders.grounded.must_say empty",
        )
    return facts


def _in_digits(text: str) -> str:
    """`text` with numbers in words as digits: "twenty-four hours" is "24 hours"."""

    def digits(found: re.Match[str]) -> str:
        tens, unit, small = (word.lower() if word else "" for word in found.groups())
        return str(_VALUES[small]) if small else str(_VALUES[tens] + (1 if unit == "one" else _VALUES.get(unit, 0)))

    return _SPELLED.sub(digits, text)


def _dates(text: str) -> Iterator[str]:
    for found in _DATE.finditer(text):
        day, month, month_first, day_second, iso_month, iso_day = found.groups()
        place = int(iso_month) - 1 if iso_month else _MONTHS.index((month or month_first)[:3])
        if place in range(12):
            yield f"{int(day or day_second or iso_day)} {_MONTHS[place]}"


def _numbers(text: str) -> Iterator[tuple[str, str]]:
    """(with its sign, without) of every number, also those inside codes; no separators and no idle zeros."""
    for before, whole, part, after in _NUMBER.findall(text):
        digits = (whole.replace(",", "").lstrip("0") or "0") + part.rstrip("0").rstrip(".")
        sign = (before or after).strip()
        yield digits + sign if sign == "%" else sign + digits, digits


def _names(text: str) -> Iterator[str]:
    """Capitalised words that begin no sentence."""
    for found in _WORD.finditer(text):
        word = _folded(found[0])
        before = text[max(found.start() - _MAX_OPENING, 0) : found.start()].rstrip(_OPENING)
        if found[0][0].isupper() and word not in _NO_NAMES and before and before[-1] not in ".!?:\n":
            yield word


def _folded(word: str) -> str:
    return normalise(word).replace("’", "'").rstrip("'-").removesuffix("'s")


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(normalise(_in_digits(text)))

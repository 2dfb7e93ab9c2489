"""Which split a group goes to when the rows themselves say it: by time, or by a column of split names.

What: the unit stays the group. By time, groups stand in the order of their latest row; the oldest go to train, the
newest to test, so nothing that is judged is older than everything trained. By column, a group goes to the strictest
split that any of its rows names (test before dev before train), and the rows that wanted less are set aside: they
resemble a test row.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date, datetime, timezone
from typing import Any

import numpy as np

from luthier.data.items import Item
from luthier.data.quarantine import Quarantine
from luthier.text.groups import Groups

SPLIT_NAMES = {
    "train": "train", "training": "train",
    "dev": "dev", "validation": "dev", "valid": "dev", "val": "dev", "eval": "dev",
    "test": "test", "testing": "test", "holdout": "test",
}  # fmt: skip
STRICTEST = ("test", "dev", "train")
MIN_SECONDS, MIN_MILLISECONDS, MAX_MILLISECONDS = 1e7, 1e11, 1e14
_DIGITS = re.compile(r"(?:19|20)\d{6}")
_NANOSECONDS = re.compile(r"(\.\d{6})\d+")


def readable(items: Sequence[Item], by: str, column: str, quarantine: Quarantine) -> np.ndarray:
    """For each item, whether its column holds a time (by time) or the name of a split; those whose column does not go
    to the quarantine."""
    parse, wanted = (parse_time, "a time") if by == "time" else (parse_split, "train, dev or test")
    is_readable = np.ones(len(items), dtype=bool)
    for index, item in enumerate(items):
        value = item.row.columns.get(column)
        if parse(value) is None:
            said = "is missing" if value in (None, "") else f"is {str(value)[:40]!r}, expected {wanted}"
            quarantine.add(item.record, f"column {column!r} of data.split.column {said}")
            is_readable[index] = False
    return is_readable


def parse_time(value: Any) -> float | None:
    """Seconds since 1970 (UTC where no zone is given) from seconds or milliseconds, an ISO date (20240131 is one) or an
    ISO date and time; None for anything else."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, datetime):
        return _seconds(value)
    if isinstance(value, date):
        return _seconds(datetime(value.year, value.month, value.day))
    text = str(value).strip()
    try:
        if _DIGITS.fullmatch(text):
            return _seconds(datetime.strptime(text, "%Y%m%d"))
        return _from_number(float(text))
    except ValueError:
        pass
    try:
        return _seconds(datetime.fromisoformat(_NANOSECONDS.sub(r"\1", text.replace("Z", "+00:00"))))
    except (ValueError, OverflowError):
        return None


def _from_number(number: float) -> float | None:
    """Seconds, or milliseconds where seconds would be a date after the year 5000."""
    if not MIN_SECONDS <= abs(number) < MAX_MILLISECONDS:
        return None
    return number if abs(number) < MIN_MILLISECONDS else number / 1000


def _seconds(moment: datetime) -> float:
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()


def parse_split(value: Any) -> str | None:
    """train, dev or test from the names that data sets use; None for anything else."""
    return SPLIT_NAMES.get(str(value).strip().lower())


def by_time(items: Sequence[Item], groups: Groups, shares: dict[str, float], column: str) -> list[str]:
    """The split of every item, oldest group first; groups with the same latest time go to the same split."""
    times = [parse_time(item.row.columns.get(column)) or 0.0 for item in items]
    latest = {root: max(times[i] for i in members) for root, members in groups.members().items()}
    members_of = groups.members()
    split_of = [""] * len(items)
    names = [name for name in ("train", "dev", "test") if shares.get(name, 0) > 0]
    limits = [sum(shares[name] for name in names[: n + 1]) * len(items) for n in range(len(names))]
    at, given, last = 0, 0, None
    for root in sorted(latest, key=lambda r: (latest[r], r)):
        while latest[root] != last and at < len(names) - 1 and given + len(members_of[root]) / 2 > limits[at]:
            at += 1
        for index in members_of[root]:
            split_of[index] = names[at]
        given, last = given + len(members_of[root]), latest[root]
    return split_of


def by_column(items: Sequence[Item], groups: Groups, column: str) -> list[str]:
    """The strictest split that a row of the item's group names."""
    named = [parse_split(item.row.columns.get(column)) or "train" for item in items]
    split_of = [""] * len(items)
    for members in groups.members().values():
        strictest = next(name for name in STRICTEST if any(named[i] == name for i in members))
        for index in members:
            split_of[index] = strictest
    return split_of


def time_ranges(items: Sequence[Item], split_of: Sequence[str], column: str) -> dict[str, list[str]]:
    """split -> [oldest, newest] time of its rows, for the proof."""
    ranges: dict[str, list[float]] = {}
    for item, split in zip(items, split_of, strict=True):
        moment = parse_time(item.row.columns.get(column)) or 0.0
        low, high = ranges.get(split, [moment, moment])
        ranges[split] = [min(low, moment), max(high, moment)]
    shown = lambda seconds: datetime.fromtimestamp(seconds, tz=timezone.utc).isoformat()  # noqa: E731
    return {split: [shown(low), shown(high)] for split, (low, high) in sorted(ranges.items())}

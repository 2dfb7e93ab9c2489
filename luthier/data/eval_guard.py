"""What training must not contain: evaluation items quoted word for word, and rows of frozen evaluation sets.

What: `remove_quoted` holds every training text against an index of evaluation items (text/cover.py) and sets aside
those that quote one. The register of frozen sets names files of rows with their digests; rows like them never reach
train or dev again. Why a register: a test set that was looked at once and then dealt anew leaks through the next
preparation.
Rows go from training, never from a test.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data.detect import detect
from luthier.data.items import Item, prompt_text
from luthier.data.quarantine import Quarantine
from luthier.data.read import read_records
from luthier.data.row_texts import texts_of
from luthier.data.sources import Source
from luthier.data.spill import Items, Mapped
from luthier.data.split import leaks_between, prompts_of
from luthier.data.stored import row_from, row_lines
from luthier.errors import DataError
from luthier.store.publish import digest_file, write_atomic
from luthier.text.cover import CoverIndex, is_leak, words_of
from luthier.types import Row

MIN_ITEM_WORDS = 4
QUOTES = "quotes an evaluation item"
FROZEN = "frozen for evaluation"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class EvalText:
    """One text of an evaluation file, and where it stands."""

    text: str
    place: str


def read_eval_texts(sources: Sequence[Source]) -> list[EvalText]:
    """Every text of at least four words in the rows of the files, whatever the columns are called."""
    found = []
    for source in sources:
        for record in read_records(detect(source.path), source.name):
            found += [EvalText(text, record.place) for text in _strings(record.value or {})]
    if sources and not found:
        raise DataError(f"data.decontaminate: {sources[0].name} holds no text", hint="give files of evaluation items")
    return found


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if len(words_of(value)) >= MIN_ITEM_WORDS:
            yield value
    elif isinstance(value, (list, tuple)):
        yield from chain.from_iterable(map(_strings, value))
    elif isinstance(value, dict):
        yield from chain.from_iterable(map(_strings, value.values()))


def remove_quoted(items: Items, against: Sequence[EvalText], quarantine: Quarantine) -> Items:
    """The items that quote none of `against` (half of it, or 13 words in a row); the others go to the quarantine."""
    if not against or not items:
        return items
    index = CoverIndex([one.text for one in against])
    index.ignore_common(Mapped(items, lambda item: [text for _, text in texts_of(item.row)]))
    quotes = np.zeros(len(items), dtype=bool)
    for number, item in enumerate(items):
        texts = [text for _, text in texts_of(item.row)]
        leaks = [overlap for text in texts for overlap in index.overlaps(text) if is_leak(overlap)]
        if not leaks:
            continue
        quotes[number] = True
        worst = max(leaks, key=lambda overlap: (overlap.cover, overlap.run))
        detail = f"{QUOTES}: {worst.cover:.0%} of {against[worst.item].place}, {worst.run} words in a row"
        quarantine.add(item.record, detail, reason=QUOTES, is_fault=False)
    return items.take(~quotes)


def read_frozen(register: Path) -> dict[str, list[Row]]:
    """name -> rows of every frozen set; {} without a register. Raises DataError where a file is not what was frozen."""
    if not register.exists():
        return {}
    try:
        sets = json.loads(register.read_text(encoding="utf-8"))["sets"]
        found = {}
        for name, entry in sets.items():
            path = register.parent / entry["file"]
            if not path.is_file() or digest_file(path) != entry["sha256"]:
                raise DataError(
                    f"{path}: the frozen set {name!r} is not what was registered (sha256)",
                    hint=f"bring the file back; or, if it may go, take {name!r} out of {register}",
                )
            found[name] = [row_from(json.loads(line)) for line in path.read_bytes().split(b"\n") if line]
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{register}: not a register of frozen sets ({error})", hint="bring it back") from error
    return found


def check_name(name: str) -> None:
    """Raises DataError for a name that is no plain file name: the set is written under it."""
    if not _NAME.fullmatch(name):
        raise DataError(
            f"{name!r} cannot be the name of a frozen set",
            hint="letters, digits, dots, dashes and underscores, at most 64, beginning with a letter or a digit",
        )


def freeze(register: Path, name: str, rows: Sequence[Row], origin: str) -> Path:
    """Registers `rows` under `name` and writes them beside the register. Raises DataError for a name that stands."""
    check_name(name)
    register_of = json.loads(register.read_text(encoding="utf-8")) if read_frozen(register) else {"sets": {}}
    if name in register_of["sets"]:
        raise DataError(
            f"{register}: {name!r} is frozen already, and a frozen set never changes", hint="choose another --name"
        )
    if not rows:
        raise DataError("there is no row to freeze", hint="choose a split that has rows")
    path = register.parent / "frozen" / f"{name}.jsonl"
    write_atomic(path, "".join(row_lines(rows)))
    entry = {"file": f"frozen/{name}.jsonl", "sha256": digest_file(path), "rows": len(rows), "from": origin}
    register_of["sets"][name] = entry
    write_atomic(register, json.dumps(register_of, indent=2) + "\n")
    return path


def find_frozen(items: Sequence[Item], frozen: dict[str, list[Row]], threshold: float) -> dict[int, str]:
    """index -> what it is like, for the items that stand in a frozen set or resemble one of its rows."""
    found: dict[int, str] = {}
    for name, sealed in frozen.items():
        for leak in leaks_between(prompts_of(items), [prompt_text(row) for row in sealed], threshold):
            like = sealed[leak.test]
            words = f"{FROZEN}: {leak.kind} as a row of {name!r} ({like.source}:{like.line})"
            found.setdefault(leak.train, f"{words}, similarity {leak.similarity:.2f}")
    return found

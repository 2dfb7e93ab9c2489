"""The keys of an Axolotl file taken one by one, with a note of what became of each."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from luthier.config.project import ProjectSpec


@dataclass(frozen=True)
class Note:
    """What became of one key. kind: kept, not needed, no counterpart, unknown or refused."""

    key: str
    line: int
    kind: str
    text: str


@dataclass
class Imported:
    """values: our dotted key -> value; origins: our dotted key -> the keys it came from; notes: one a key of theirs."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)

    def of_kind(self, kind: str) -> list[Note]:
        """The notes of one kind, in the order of the file."""
        return [note for note in self.notes if note.kind == kind]


def accepts(dotted: str, value: Any) -> bool:
    """Does the project file of this version know the key, and take this value?"""
    model: Any = ProjectSpec
    *sections, leaf = dotted.split(".")
    for section in sections:
        inner = model.model_fields.get(section) if isinstance(model, type) and issubclass(model, BaseModel) else None
        model = inner.annotation if inner else None
    spec = model.model_fields.get(leaf) if isinstance(model, type) and issubclass(model, BaseModel) else None
    if spec is None:
        return False
    try:
        TypeAdapter(spec.rebuild_annotation()).validate_python(value)
    except ValidationError:
        return False
    return True


class Reader:
    """Takes keys out of the raw file one by one, and notes what became of each."""

    def __init__(self, raw: dict[str, Any], lines: dict[str, int]) -> None:
        self.left = {key: value for key, value in raw.items() if value not in (None, "")}
        self.lines = lines
        self.done = Imported()
        for key in raw.keys() - self.left.keys():
            self.note(key, "not needed", "it is empty")

    def note(self, key: str, kind: str, text: str) -> None:
        """Writes down what became of a key."""
        self.done.notes.append(Note(key, self.lines.get(key, 0), kind, text))

    def take(self, key: str, default: Any = None) -> Any:
        """The value of a key, which is then no longer left over."""
        return self.left.pop(key, default)

    def number(self, key: str, default: Any = None, *, whole: bool = False) -> Any:
        """The number under a key, also where it is written as text, as Axolotl takes it; what is none is refused."""
        given = self.take(key)
        if given is None:
            return default
        try:
            value = float(given) if not isinstance(given, (bool, int)) else given
            if isinstance(given, (bool, list, dict)) or not math.isfinite(value):
                raise ValueError
        except (TypeError, ValueError):
            self.refuse(key, f"expected a number, got {str(given)[:40]!r}")
            return default
        if whole and value != int(value):
            self.refuse(key, f"expected a whole number, got {given}")
            return default
        return int(value) if whole else value

    def keep_number(self, key: str, dotted: str, *, whole: bool = False) -> None:
        """A number of theirs under our name, if it is there; one that is out of bounds is refused."""
        value = self.number(key, whole=whole)
        if value is not None:
            self.keep(key, dotted, value, must=True)

    def keep(self, key: str, dotted: str, value: Any, words: str = "", *, must: bool = False) -> None:
        """`key` becomes `dotted`; where this version does not know that value, it has no counterpart, or (must) the
        file is refused: another value would train something else."""
        if not accepts(dotted, value):
            if must:
                self.refuse(key, f"{dotted} does not take {str(value)[:40]}")
            else:
                self.lose(key, f"{dotted} does not take {str(value)[:40]!r}; its default holds")
            return
        self.done.values[dotted] = value
        where = f"{key} (line {self.lines[key]})" if key in self.lines else key
        where += f": {words}" if words else ""
        before = self.done.origins.get(dotted)
        self.done.origins[dotted] = f"{before}, {where}" if before else where
        self.note(key, "kept", f"{dotted}: {words}" if words else dotted)

    def need_not(self, key: str, why: str) -> None:
        """`key` has nothing to say here."""
        self.note(key, "not needed", why)

    def lose(self, key: str, instead: str) -> None:
        """`key` has no counterpart."""
        self.note(key, "no counterpart", instead)

    def refuse(self, key: str, why: str) -> None:
        """What `key` asks for would not be what is trained."""
        self.note(key, "refused", why)

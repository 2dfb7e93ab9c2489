"""The library's functions as pieces to build with: signature from the code itself, words from `wordings`."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from wordings import DEMO, HIDDEN, VALUES, WORDINGS

LIBRARY = Path(__file__).parent / "lib"
sys.path.insert(0, str(LIBRARY))


@dataclass(frozen=True)
class Piece:
    """One function. parameters: those after the record, the list or the figure that it takes first."""

    module: str
    name: str
    kind: str
    unit: str
    wordings: tuple[str, ...]
    signature: str
    parameters: tuple[str, ...]

    @property
    def path(self) -> str:
        """As it is called."""
        return f"{self.module}.{self.name}"

    def values(self, parameter: str) -> tuple:
        """What one of its parameters may be."""
        places = (f"{self.path}.{parameter}", f"{self.module}.{parameter}", parameter)
        return next(VALUES[place] for place in places if place in VALUES)


def read_pieces() -> list[Piece]:
    """Every function that has a wording, in the order of the table."""
    return [_piece(module, name, *entry) for module, entries in WORDINGS.items() for name, entry in entries.items()]


def _piece(module: str, name: str, kind_and_unit: str, *wordings: str) -> Piece:
    kind, _, unit = kind_and_unit.partition(" ")
    signature = inspect.signature(getattr(importlib.import_module(f"atelier.{module}"), name))
    result = getattr(signature.return_annotation, "__name__", "")
    shown = f"{module}.{name}({', '.join(signature.parameters)}) -> {result}"
    return Piece(module, name, kind, unit, wordings, shown, tuple(signature.parameters)[1:])


class Shelf:
    """The pieces that a split may use; pieces that were used little come first."""

    def __init__(self, pieces: Sequence[Piece], used: Counter[str]) -> None:
        self.pieces, self.used = pieces, used

    def of(self, module: str, kind: str) -> list[Piece]:
        """Those of one module and kind."""
        return [piece for piece in self.pieces if piece.module == module and piece.kind == kind]

    def draw(self, fits: Sequence[Piece], rng: Random) -> Piece:
        """The least used of three."""
        return min(rng.choices(fits, k=3), key=lambda piece: self.used[piece.path])


def seen_pieces() -> list[Piece]:
    """Those that training rows may use."""
    return [piece for piece in read_pieces() if piece.path not in HIDDEN]


def demo_records(module: str) -> list[dict]:
    """The library's own examples of what the functions of a module take."""
    return getattr(importlib.import_module("atelier.demo"), DEMO[module])

"""A new function while it is made: its pieces, its parameters, and how it speaks about them."""

from __future__ import annotations

import re
from random import Random

from pieces import Piece, Shelf

STOPWORDS = frozenset(
    [
        "a",
        "an",
        "the",
        "of",
        "in",
        "on",
        "for",
        "to",
        "at",
        "by",
        "as",
        "is",
        "it",
        "its",
        "that",
        "with",
        "and",
        "or",
        "than",
        "from",
        "up",
        "be",
        "been",
        "not",
        "no",
        "so",
        "too",
        "are",
        "so",
        "after",
        "such",
        "until",
        "when",
        "what",
        "which",
        "were",
        "whose",
        "one",
        "all",
        "still",
    ]
)


class Unfit(Exception):
    """These pieces do not go together; the generator draws again."""


class Sketch:
    """The function in the making. one, many: what it calls a record and a list of them."""

    def __init__(self, rng: Random, shelf: Shelf, module: str, nouns: tuple[str, str]) -> None:
        self.rng, self.shelf, self.module = rng, shelf, module
        self.one, self.many = nouns
        self.pieces: list[Piece] = []
        self.arguments: dict[str, tuple[object, bool]] = {}
        self.takes_many = False
        self._words: list[str] = []
        self._pools: dict[str, tuple] = {}

    # pieces

    def take(self, kind: str, *, unit: str = "", plain: bool = False, module: str = "") -> Piece:
        """A piece of that kind that this sketch has not used. plain: without further parameters. Raises Unfit."""
        fits = [
            piece
            for piece in self.shelf.of(module or self.module, kind)
            if piece not in self.pieces and unit in ("", piece.unit) and not (plain and piece.parameters)
        ]
        if not fits:
            raise Unfit(kind)
        piece = self.shelf.draw(fits, self.rng)
        for name in piece.parameters:
            pool = piece.values(name)
            if self._pools.setdefault(name, pool) != pool:
                raise Unfit(name)
            if name not in self.arguments:
                self.arguments[name] = (self.rng.choice(pool), self.rng.random() < 0.5)
        self.pieces.append(piece)
        return piece

    def convert(self, unit: str) -> Piece:
        """A conversion that takes this unit."""
        if not unit:
            raise Unfit("no unit")
        return self.take("scalar", unit=unit, module="units")

    # code

    def call(self, piece: Piece, what: str) -> str:
        """The call with its arguments: parameters by name, figures that the sentence names as they are."""
        given = [name if self.arguments[name][1] else repr(self.arguments[name][0]) for name in piece.parameters]
        return f"{piece.path}({', '.join([what, *given])})"

    def parameter(self, name: str, pool: tuple) -> str:
        """A further parameter of the new function."""
        self.arguments[name] = (self.rng.choice(pool), True)
        return name

    # words

    def _said(self, piece: Piece) -> str:
        wording = self.rng.choice(piece.wordings)
        words = re.findall(r"[a-z]+", re.sub(r"\{\w+\}", "", wording))
        self._words += [word for word in words if word not in STOPWORDS][:2]
        shown = {name: f"`{name}`" if free else value for name, (value, free) in self.arguments.items()}
        return wording.format(**shown)

    def figure(self, piece: Piece, of: str) -> str:
        """`the weight of the board`, for measures, labels and totals."""
        noun, _, tail = self._said(piece).partition(" @ ")
        return f"the {noun} of {of}{' ' + tail if tail else ''}"

    def bare(self, piece: Piece) -> str:
        """`oldest`, `planed by 3 mm`, `in inches`: the wording alone."""
        return self._said(piece)

    def say(self, *sentences: str) -> str:
        """One of the ways to say it."""
        chosen = self.rng.choice(sentences)
        mark = "?" if chosen.split()[0] in ("is", "are", "would", "how") else "."
        return chosen[0].upper() + chosen[1:] + mark

    @property
    def name(self) -> str:
        """A name for the new function from the words of its sentence."""
        words = list(dict.fromkeys(self._words))[: self.rng.choice((2, 3))]
        return "_".join([*words, self.rng.choice((self.one, "")) if not self.takes_many else ""]).strip("_")

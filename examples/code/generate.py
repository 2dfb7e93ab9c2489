"""Writes raw/train.jsonl and raw/test.jsonl: functions to write against the library in lib/, with their tests.

    python examples/code/generate.py [FOLDER]

Seeded: the same bytes every time. A row is kept only if its tests notice every slip (`slips.py`): each call swapped for
any other function of its module that takes and gives the same, parts left out. No combination of functions of a
test row occurs in a training row, and hidden functions occur in no training row at all, not even as a line to read.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from patterns import PATTERNS
from pieces import Piece, Shelf, demo_records, read_pieces, seen_pieces
from sketch import Sketch, Unfit
from slips import slips
from wordings import DEMO, HIDDEN, NOUNS

SEED = 1644
ROWS = {"hidden": 80, "seen": 150, "train": 790}
NUM_LISTED = 4
NUM_ASSERTS = 3
NUM_INPUTS = 24
MOST_OF_ONE_HIDDEN = 6
FREE = {"n": (2, 3, 4), "limit": (0.5, 2, 8, 20, 50, 150, 400, 2000)}
"""Parameters that no function of the library has."""
FOLDER = Path(__file__).parent / "raw"


def compiled(code: str, name: str) -> Callable[..., Any]:
    """The function that an answer defines."""
    space: dict[str, Any] = {}
    exec(compile(code, "<answer>", "exec"), space)
    return space[name]


def outcome(function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    """What it returns, or the error's class."""
    try:
        return function(*arguments)
    except Exception as error:
        return type(error)


def inputs(sketch: Sketch, rng: Random) -> list[tuple[str, list[Any]]]:
    """Arguments to try, as text and as values."""
    names = [name for name, (_, free) in sketch.arguments.items() if free]
    pools = {piece_name: p.values(piece_name) for p in sketch.pieces for piece_name in p.parameters} | FREE
    demo, records = DEMO[sketch.module], demo_records(sketch.module)
    drawn = []
    for _ in range(NUM_INPUTS):
        place = rng.randrange(len(records) - (4 if sketch.takes_many else 0))
        end = rng.randrange(place + 4, len(records) + 1) if sketch.takes_many else 0
        text, first = (f"{demo}[{place}:{end}]", records[place:end]) if end else (f"{demo}[{place}]", records[place])
        values = [rng.choice(pools[name]) for name in names]
        drawn.append((", ".join([text, *map(repr, values)]), [first, *values]))
    return drawn


def asserts(sketch: Sketch, code: str, name: str, rng: Random, everything: Sequence[Piece]) -> list[str]:
    """Tests that the answer passes and every slip fails. Raises Unfit when a few inputs cannot tell them apart."""
    right = compiled(code, name)
    tried = [(text, given, outcome(right, given)) for text, given in inputs(sketch, rng)]
    tried = [one for one in tried if not isinstance(one[2], type) and one[2] not in ([], {})]
    alive = [compiled(slip, name) for slip in slips(code, sketch.pieces, everything)]
    kept: list[tuple[str, Any]] = []
    for text, given, value in tried:
        left = [wrong for wrong in alive if outcome(wrong, given) == value]
        new = repr(value) not in [repr(other) for _, other in kept]
        if len(left) < len(alive) or (new and len(kept) < NUM_ASSERTS):
            kept.append((f"{name}({text})", value))
            alive = left
    if alive or len(kept) > NUM_ASSERTS + 1 or len({repr(value) for _, value in kept}) < 2:
        raise Unfit("the inputs do not tell")
    return [
        f"assert abs({call} - {value!r}) < 1e-6" if type(value) is float else f"assert {call} == {value!r}"
        for call, value in kept
    ]


def listed(sketch: Sketch, rng: Random) -> str:
    """The lines of the library's index that go with the question: what is needed, among what is like it."""
    others = [piece for piece in sketch.shelf.pieces if piece not in sketch.pieces and piece.module == sketch.module]
    kinds = {piece.kind for piece in sketch.pieces}
    rng.shuffle(others)
    others.sort(key=lambda piece: piece.kind not in kinds)
    lines = [piece.signature for piece in (*sketch.pieces, *others[: max(1, NUM_LISTED - len(sketch.pieces))])]
    rng.shuffle(lines)
    return "\n".join(lines)


@dataclass(frozen=True)
class Draft:
    """A new function before its tests."""

    sketch: Sketch
    pattern: str
    body: str
    sentence: str

    @property
    def calls(self) -> str:
        """The functions that it uses."""
        return " ".join(sorted(piece.path for piece in self.sketch.pieces))

    @property
    def hidden(self) -> list[str]:
        """Those of them that training rows must not use."""
        return [piece.path for piece in self.sketch.pieces if piece.path in HIDDEN]


def make_draft(rng: Random, shelf: Shelf) -> Draft:
    """Some pieces, put together somehow. Raises Unfit."""
    module = rng.choice(list(NOUNS))
    sketch = Sketch(rng, shelf, module, rng.choice(NOUNS[module]))
    pattern = min(rng.choices(PATTERNS, k=2), key=lambda each: shelf.used[each.__name__])
    return Draft(sketch, pattern.__name__, *pattern(sketch))


def make_row(draft: Draft, rng: Random, everything: Sequence[Piece]) -> dict[str, Any]:
    """The row of a draft. Raises Unfit when it cannot be tested."""
    sketch, name = draft.sketch, draft.sketch.name
    first = sketch.many if sketch.takes_many else sketch.one
    names = [first, *(each for each, (_, free) in sketch.arguments.items() if free)]
    if name in names or not name.isidentifier() or first in NOUNS:  # a parameter called `orders` hides the module
        raise Unfit(name)
    head = f"def {name}({', '.join(names)}):"
    modules = sorted({piece.module for piece in sketch.pieces})
    code = f"from atelier import {', '.join(modules)}\n\n{head}\n    {draft.body}"
    tests = [f"from atelier.demo import {DEMO[sketch.module]}", *asserts(sketch, code, name, rng, everything)]
    return {
        "index": listed(sketch, rng),
        "ask": f'{head}\n    """{draft.sentence}"""',
        "answer": code,
        "tests": "\n".join(tests),
        "calls": draft.calls,
        "pattern": draft.pattern,
    }


def make_rows() -> dict[str, list[dict[str, Any]]]:
    """The rows of each slice: hidden and seen are test rows."""
    rng, everything = Random(SEED), read_pieces()
    made: dict[str, list[dict[str, Any]]] = {part: [] for part in ROWS}
    taken: set[tuple[str, str]] = set()
    reserved: set[str] = set()
    for part, wanted in ROWS.items():
        shelf = Shelf(everything if part == "hidden" else seen_pieces(), Counter())
        while len(made[part]) < wanted:
            try:
                draft = make_draft(rng, shelf)
                key = (draft.pattern, draft.calls)
                if key in taken or not _belongs(draft, part, shelf, reserved):
                    continue
                row = make_row(draft, rng, everything)
            except Unfit:
                continue
            taken.add(key)
            shelf.used.update([draft.pattern, *(piece.path for piece in draft.sketch.pieces)])
            if part != "train":
                reserved.add(draft.calls)
            made[part].append({**row, "slice": part})
    trained = {path for row in made["train"] for path in row["calls"].split()}
    made["seen"] = [row for row in made["seen"] if trained.issuperset(row["calls"].split())]
    return made


def _belongs(draft: Draft, part: str, shelf: Shelf, reserved: set[str]) -> bool:
    if part == "hidden":
        return bool(draft.hidden) and all(shelf.used[path] < MOST_OF_ONE_HIDDEN for path in draft.hidden)
    return part == "seen" or draft.calls not in reserved


def main(folder: Path) -> None:
    """Writes both files."""
    made = make_rows()
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", made["train"]), ("test", made["seen"] + made["hidden"])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)

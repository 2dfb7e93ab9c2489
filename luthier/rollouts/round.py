"""A round of answers as it is kept: one JSON line an answer, under a first line that tells whether all are there.

What was sampled, how likely each token was, what it was worth: all that the steps of the round learn from. So a run
that was cut off goes on with the very answers it had, and people can read what the model said, and what for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from luthier.store.publish import write_atomic

GIVEN, LOST = "given", "lost"
"""`Answer.finish` of the row's own answer, and of one that a server did not give."""


@dataclass(frozen=True)
class Answer:
    """One sampled answer to the prompt of row `row`, the `number`-th of its group.

    ids: the answer's own tokens, its stop token included; logps: of each, when it was sampled; ref_logps: under the
    base, () where nobody asks; server_logps: as the server that drew it told them. reward: None = it has none, for the
    reason in `error`. advantages: of each token; values and returns: what the value head told before each, and what it
    should have told (ppo).
    """

    row: str
    number: int
    ids: tuple[int, ...]
    logps: tuple[float, ...]
    finish: str
    text: str
    reward: float | None = None
    parts: dict[str, float] = field(default_factory=dict)
    error: str = ""
    learnt: bool = True
    ref_logps: tuple[float, ...] = ()
    server_logps: tuple[float, ...] = ()
    advantages: tuple[float, ...] = ()
    values: tuple[float, ...] = ()
    returns: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """Its row id in training."""
        return f"{self.row}/{self.number}"


def write_round(path: Path, answers: Sequence[Answer], figures: dict[str, float]) -> None:
    """Writes a round at once."""
    lines = "".join(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers)
    head = {"answers": len(answers), "sha256": hashlib.sha256(lines.encode()).hexdigest(), "figures": figures}
    write_atomic(path, json.dumps(head) + "\n" + lines)


def read_round(path: Path) -> tuple[list[Answer], dict[str, float]] | None:
    """What `write_round` wrote; None when it is not there, or not whole."""
    if not path.is_file():
        return None
    head, _, lines = path.read_text(encoding="utf-8").partition("\n")
    try:
        told = json.loads(head)
        if told["sha256"] != hashlib.sha256(lines.encode()).hexdigest():
            return None
        return [_answer(json.loads(line)) for line in lines.split("\n") if line], dict(told["figures"])
    except (ValueError, KeyError, TypeError):
        return None


def _answer(kept: dict[str, Any]) -> Answer:
    fields: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in kept.items()}
    return Answer(**fields)

"""What a row becomes for an objective: its token sequences, and which of their tokens carry loss.

  turns         the conversation, or one sequence for each turn when the template rewrites history; turns before the
                last may weigh less
  documents     a plain text; a long one in chunks that overlap, so that every token but the first carries loss once
  pairs         prompt + chosen side and, as its companion, prompt + rejected side; the turns of the sides carry loss
  labelled      prompt + answer, the last turn carries loss (its companion is made when training: `Mismatched`)
  scored        the prompt as serving renders it; `scored_pairs`: both sides up to their stop token. Their last token
                stands for the sequence
  prompts       the prompt as serving renders it, to be answered while training (its last token is marked)
A row that is no example of this kind raises RowError with the reason for the quarantine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from luthier.config.loss import LossSpec
from luthier.data.lengths import Codec
from luthier.data.stored import EncodedSet
from luthier.data.turns import RowError
from luthier.text.normalise import normalise
from luthier.types import EncodedRow, Message, Row


@dataclass(frozen=True)
class RowEncoder:
    """A codec that encodes rows for one objective."""

    codec: Codec
    loss: LossSpec
    sequence_len: int

    def encode(self, row: Row) -> list[EncodedRow]:
        """The row's training sequences. Raises RowError, and what the codec raises."""
        return _SHAPES[self.loss.sequences](self, row)


def rows_become(loss: LossSpec) -> dict[str, object]:
    """The settings of `loss` that the sequences depend on: what prepared data is only good for."""
    return {"sequences": loss.sequences, "earlier_turns": loss.earlier_turns, "chunk_overlap": loss.chunk_overlap}


def _turns(encoder: RowEncoder, row: Row) -> list[EncodedRow]:
    weight = 1.0 if encoder.loss.earlier_turns is None else encoder.loss.earlier_turns
    rows = encoder.codec.encode(row)
    if weight == 1.0:
        return rows
    if len(rows) > 1:  # one sequence a turn
        if weight == 0.0:
            return rows[-1:]
        return [replace(one, weights=(weight if one is not rows[-1] else 1.0,) * len(one.ids)) for one in rows]
    start = _last_span(rows[0])[0]
    if weight == 0.0:
        trained = tuple(flag and place >= start for place, flag in enumerate(rows[0].trained))
        return [replace(rows[0], trained=trained)]
    return [replace(rows[0], weights=(weight,) * start + (1.0,) * (len(rows[0].ids) - start))]


def _last_span(row: EncodedRow) -> tuple[int, int]:
    """[start, stop) of the last run of trained tokens."""
    stop = len(row.trained)
    while stop and not row.trained[stop - 1]:
        stop -= 1
    if not stop:
        raise RowError("no trained token")
    start = stop
    while start and row.trained[start - 1]:
        start -= 1
    return start, stop


def _documents(encoder: RowEncoder, row: Row) -> list[EncodedRow]:
    if not row.text:
        raise RowError("not a plain text: loss.kind continued reads documents (format text)")
    (whole,), window, overlap = encoder.codec.encode(row), encoder.sequence_len, encoder.loss.chunk_overlap or 1
    if len(whole.ids) <= window:
        return [whole]
    chunks, start = [], 0
    while True:
        stop = min(start + window, len(whole.ids))
        seen = overlap if start else 0
        trained = (False,) * seen + whole.trained[start + seen : stop]
        chunks.append(EncodedRow(f"{row.id}/{len(chunks)}", whole.ids[start:stop], trained))
        if stop == len(whole.ids):
            return chunks
        start = stop - overlap


def _last_turn(encoder: RowEncoder, row: Row) -> EncodedRow:
    """The conversation, of which only the last turn carries loss; nothing follows its stop token."""
    encoded = encoder.codec.encode(row)[-1]
    start, stop = _last_span(encoded)
    trained = (False,) * start + (True,) * (stop - start)
    return EncodedRow(row.id, encoded.ids[:stop], trained)


def _sides(encoder: RowEncoder, row: Row) -> tuple[EncodedRow, EncodedRow]:
    """Both sides begin at the first answer that carries loss (Row.rejected)."""
    if not row.messages or not row.rejected:
        raise RowError("only one side: this objective needs a chosen and a rejected answer to the same prompt")
    turns = enumerate(row.messages)
    start = next((i for i, m in turns if m["role"] == "assistant" and m.get("train") is not False), len(row.messages))
    prompt, chosen = row.messages[:start], row.messages[start:]
    texts = [normalise("\n".join(turn["content"] for turn in side)) for side in (chosen, row.rejected)]
    if texts[0] == texts[1]:
        raise RowError("both sides are the same answer")
    sides = _side(encoder, row, prompt + chosen), _side(encoder, row, prompt + row.rejected)
    if sides[0].ids == sides[1].ids:
        raise RowError("both sides are the same answer once tokenised")
    return sides


def _side(encoder: RowEncoder, row: Row, messages: tuple[Message, ...]) -> EncodedRow:
    """A conversation up to its last trained token."""
    rows = encoder.codec.encode(replace(row, messages=messages, rejected=()))
    if len(rows) > 1:
        raise RowError("a side of several turns, which this chat template does not render as one sequence")
    stop = _last_span(rows[0])[1]
    return EncodedRow(row.id, rows[0].ids[:stop], rows[0].trained[:stop])


def _pairs(encoder: RowEncoder, row: Row) -> list[EncodedRow]:
    chosen, rejected = _sides(encoder, row)
    return [replace(chosen, companions=(rejected,))]


def _labelled(encoder: RowEncoder, row: Row) -> list[EncodedRow]:
    if row.label is None:
        raise RowError("no label: loss.kind kto needs answers marked true or false (a column such as label)")
    return [_last_turn(encoder, row)]


def read_number(value: object, what: str) -> float:
    """A finite number from a cell. Raises RowError that names `what`."""
    try:
        number = float(str(value).strip())
    except ValueError:
        raise RowError(f"{what} is {str(value)[:40]!r}, expected a number") from None
    if not math.isfinite(number):
        raise RowError(f"{what} is {number}, expected a finite number")
    return number


def _at_end(row: EncodedRow) -> EncodedRow:
    return replace(row, trained=(False,) * (len(row.ids) - 1) + (True,))


def _scored_pairs(encoder: RowEncoder, row: Row) -> list[EncodedRow]:
    column = encoder.loss.margin_column
    if column is not None:
        read_number(row.columns.get(column), f"column {column!r} of loss.margin_column")
    chosen, rejected = _sides(encoder, row)
    return [replace(_at_end(chosen), companions=(_at_end(rejected),))]


def _scored(encoder: RowEncoder, row: Row) -> list[EncodedRow]:
    if encoder.loss.kind == "regress":
        read_number(row.answer, "the answer")
    return [_prompt(encoder, row)]


def _prompt(encoder: RowEncoder, row: Row) -> EncodedRow:
    encoded = _last_turn(encoder, row)
    start = _last_span(encoded)[0]
    if start < 2:
        raise RowError("no prompt to read")
    return _at_end(EncodedRow(row.id, encoded.ids[:start], encoded.trained[:start]))


def _prompts(encoder: RowEncoder, row: Row) -> list[EncodedRow]:
    prompt, room = _prompt(encoder, row), encoder.sequence_len
    if len(prompt.ids) > room:
        raise RowError(
            f"prompt beyond the window: {len(prompt.ids):,} tokens, and rollouts.max_new_tokens leaves {room:,} of "
            "train.sequence_len"
        )
    return [prompt]


_SHAPES: dict[str, Callable[[RowEncoder, Row], list[EncodedRow]]] = {
    "turns": _turns,
    "documents": _documents,
    "pairs": _pairs,
    "labelled": _labelled,
    "scored": _scored,
    "prompts": _prompts,
    "scored_pairs": _scored_pairs,
}


class Mismatched:
    """Labelled rows, each with a companion: its own prompt with the answer of the row before it (of the last, for the
    first).
    """

    def __init__(self, rows: EncodedSet) -> None:
        self.rows = rows
        starts = [next(place for place, flag in enumerate(row.trained) if flag) for row in rows]
        self.starts = np.asarray(starts, dtype=np.int64)
        answers = rows.lengths - self.starts
        self.lengths = rows.lengths + self.starts + np.roll(answers, 1)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> EncodedRow:
        row, before = self.rows[index], (index - 1) % len(self.rows)
        start, answer = int(self.starts[index]), self.rows[before].ids[int(self.starts[before]) :]
        trained = (False,) * start + (True,) * len(answer)
        return replace(row, companions=(EncodedRow(row.row_id, row.ids[:start] + answer, trained),))

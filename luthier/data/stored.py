"""Prepared rows on disk: canonical rows as JSONL, token ids as flat arrays that are mapped, not loaded.

tokens-<split>.ids.npy uint32 (all tokens one after the other), .trained.npy bool, .offsets.npy int64 (sequences + 1),
.rows.npy (row id of every encoded row; the sequences of a row stand one after the other, equally many for each), and
.weights.npy float32 where tokens weigh differently. A run of ten million tokens opens in milliseconds.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data.spool import HELD_BYTES
from luthier.errors import ArtifactError, DataError
from luthier.types import EncodedRow, Row

TOKENS_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class EncodedSet:
    """Encoded rows over flat arrays (types in the module docstring); len() and [i] -> EncodedRow."""

    ids: np.ndarray
    trained: np.ndarray
    offsets: np.ndarray
    row_ids: np.ndarray
    weights: np.ndarray | None = None

    @staticmethod
    def of(rows: Sequence[EncodedRow]) -> EncodedSet:
        """The same rows as arrays in memory."""
        sequences = [sequence for row in rows for sequence in row.sequences]
        lengths = [len(sequence.ids) for sequence in sequences]
        weights = (w for sequence in sequences for w in sequence.weights or (1.0,) * len(sequence.ids))
        return EncodedSet(
            np.fromiter((i for sequence in sequences for i in sequence.ids), dtype=np.uint32, count=sum(lengths)),
            np.fromiter((t for sequence in sequences for t in sequence.trained), dtype=bool, count=sum(lengths)),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            np.asarray([row.row_id for row in rows], dtype="U64" if not rows else None),
            np.fromiter(weights, dtype=np.float32, count=sum(lengths)) if any(s.weights for s in sequences) else None,
        )

    @property
    def num_sequences(self) -> int:
        """Sequences of one row: 2 for pairs."""
        return (len(self.offsets) - 1) // max(1, len(self.row_ids))

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of every row, those of its companions included."""
        return np.diff(self.offsets[:: max(1, self.num_sequences)])

    @property
    def num_tokens(self) -> int:
        """All tokens."""
        return int(self.offsets[-1])

    @property
    def num_trained(self) -> int:
        """Tokens that carry loss."""
        return int(np.count_nonzero(self.trained))

    def __len__(self) -> int:
        return len(self.row_ids)

    def __getitem__(self, index: int) -> EncodedRow:
        index = range(len(self))[index]
        first = index * self.num_sequences
        companions = tuple(self._sequence(index, first + side) for side in range(1, self.num_sequences))
        return replace(self._sequence(index, first), companions=companions)

    def _sequence(self, index: int, place: int) -> EncodedRow:
        span = slice(int(self.offsets[place]), int(self.offsets[place + 1]))
        weights = () if self.weights is None else tuple(self.weights[span].tolist())
        ids, trained = tuple(self.ids[span].tolist()), tuple(self.trained[span].tolist())
        return EncodedRow(str(self.row_ids[index]), ids, trained, weights)

    def __iter__(self) -> Iterator[EncodedRow]:
        return (self[index] for index in range(len(self)))


def row_lines(rows: Iterable[Row]) -> Iterator[str]:
    """Rows as lines of JSONL."""
    return (json.dumps(vars(row), ensure_ascii=False) + "\n" for row in rows)


def row_from(value: dict[str, Any]) -> Row:
    """The row of one parsed line. Raises TypeError, KeyError or ValueError for what is none."""
    if not isinstance(value, dict) or not isinstance(value.get("text", ""), str):
        raise TypeError("expected an object of a row's fields")
    for turn in (*value.get("messages", ()), *value.get("rejected", ())):
        if not isinstance(turn, dict) or not all(isinstance(turn.get(part), str) for part in ("role", "content")):
            raise TypeError("a turn without role and content")
    turns = {key: tuple(value.get(key, ())) for key in ("messages", "rejected")}
    pieces = {key: tuple((text, flag) for text, flag in value.get(key, ())) for key in ("segments", "steps")}
    return Row(**{**value, **turns, **pieces})


def read_rows(folder: Path, split: str) -> list[Row]:
    """Rows of train, dev, test or unlabelled; an absent split is empty. Raises ArtifactError for a torn file."""
    path = folder / f"{split}.jsonl"
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        try:
            rows += [row_from(json.loads(line))] if line else []
        except (ValueError, TypeError, KeyError) as error:
            raise ArtifactError(
                f"{path}:{number}: not a prepared row ({error})", hint="run `luthier prepare`"
            ) from error
    return rows


def read_task_rows(folder: Path) -> list[Row]:
    """The training rows without what is replayed: shots, baselines and comparisons are of the task."""
    return [row for row in read_rows(folder, "train") if not row.is_replay]


def check_prepared(folder: Path) -> None:
    """Raises DataError, with those that are near, where `folder` is none that `luthier prepare` has made."""
    if (folder / "train.jsonl").is_file():
        return
    found = "is a file" if folder.is_file() else "holds no prepared rows" if folder.is_dir() else "no such folder"
    home = folder if folder.is_dir() else folder.parent
    near = [str(home)] if (home / "train.jsonl").is_file() else []
    near += sorted(str(path) for path in (*home.glob("prepare-*"), *home.glob("*/prepare-*")))[:4]
    hint = f"did you mean {' or '.join(near)}?" if near else "`luthier prepare` prints the folder that it makes"
    raise DataError(f"{folder}: {found}; expected a folder of `luthier prepare`", hint=hint)


def write_encoded(folder: Path, split: str, rows: Iterable[EncodedRow]) -> None:
    """Writes the arrays of a split into `folder`, some rows at a time."""
    arrays = {name: GrowingArray(folder / f"tokens-{split}.{name}.npy") for name in _NAMES}
    weights = folder / f"tokens-{split}.weights.npy"
    grown: GrowingArray | None = None
    num_tokens = 0
    for some in map(EncodedSet.of, _batches(rows)):
        arrays["ids"].append(some.ids)
        arrays["trained"].append(some.trained)
        arrays["offsets"].append(some.offsets[bool(num_tokens) :] + num_tokens)
        arrays["rows"].append(some.row_ids)
        if some.weights is not None and grown is None:
            grown = GrowingArray(weights)
            grown.append(np.ones(num_tokens, dtype=np.float32))
        if grown is not None:
            grown.append(np.ones(len(some.ids), dtype=np.float32) if some.weights is None else some.weights)
        num_tokens += some.num_tokens
    for array in (*arrays.values(), *([grown] if grown else [])):
        array.close()


def _batches(rows: Iterable[EncodedRow]) -> Iterator[list[EncodedRow]]:
    """The rows in batches of about TOKENS_AT_ONCE tokens; one empty batch where there are none."""
    some: list[EncodedRow] = []
    num_tokens, is_first = 0, True
    for row in rows:
        some.append(row)
        num_tokens += sum(len(sequence.ids) for sequence in row.sequences)
        if num_tokens >= TOKENS_AT_ONCE:
            yield some
            some, num_tokens, is_first = [], 0, False
    if some or is_first:
        yield some


class GrowingArray:
    """A .npy file of one dimension that grows; text arrays widen when a longer text comes."""

    def __init__(self, path: Path) -> None:
        self._path, self._parts = path, tempfile.SpooledTemporaryFile(max_size=HELD_BYTES)  # noqa: SIM115
        self._blocks: list[tuple[np.dtype, int]] = []

    def append(self, values: np.ndarray) -> None:
        """Adds values of the array's type."""
        self._parts.write(values.tobytes())
        self._blocks.append((values.dtype, len(values)))

    def close(self) -> None:
        """Writes the file."""
        dtype = max((kind for kind, _ in self._blocks), key=lambda kind: kind.itemsize)
        if any(num for _, num in self._blocks):
            dtype = max((kind for kind, num in self._blocks if num), key=lambda kind: kind.itemsize)
        shape = (sum(num for _, num in self._blocks),)
        self._parts.seek(0)
        with self._path.open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for kind, num in self._blocks:
                block = np.frombuffer(self._parts.read(kind.itemsize * num), dtype=kind)
                file.write(block.astype(dtype, copy=False).tobytes())
        self._parts.close()


def read_encoded(folder: Path, split: str) -> EncodedSet:
    """The encoded rows of train or dev, memory-mapped. Raises ArtifactError when they are missing or do not agree."""
    paths = [folder / f"tokens-{split}.{name}.npy" for name in (*_NAMES, "weights")]
    try:
        ids, trained, offsets, row_ids = (_map(path) for path in paths[:-1])
        weights = _map(paths[-1]) if paths[-1].exists() else None
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{folder}: tokens of {split} cannot be read ({error})", hint="run `luthier prepare`"
        ) from error
    num_sequences, uneven = divmod(len(offsets) - 1, max(1, len(row_ids)))
    if len(ids) != len(trained) or len(ids) != offsets[-1] or uneven or (len(row_ids) and not num_sequences):
        raise ArtifactError(f"{folder}: the token arrays of {split} do not agree", hint="run `luthier prepare` again")
    return EncodedSet(ids, trained, offsets, row_ids, weights)


_NAMES = ("ids", "trained", "offsets", "rows")


def _map(path: Path) -> np.ndarray:
    array = np.load(path, mmap_mode=None if path.stat().st_size < 4096 else "r", allow_pickle=False)
    return array

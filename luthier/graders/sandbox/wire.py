"""Values between the program's process and the tests' process: JSON frames, data by value, everything else by number.

Never pickle or marshal: the side that reads must be safe from the side that writes. None, booleans, numbers, texts,
lists, tuples, sets, dicts, bytes and a few value types of the standard library travel as what they are, so that tests
compare them in their own process. Any other object stays where it is and travels as a reference (`peer.py`).
"""

from __future__ import annotations

import json
import os
import struct
from collections import deque
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_FRAME_BYTES = 8 << 20
MAX_DEPTH = 200
SAFE_INT = 1 << 53
_HEADER = struct.Struct(">I")


def send(descriptor: int, message: Any) -> None:
    """Writes one frame. Raises ValueError when it is larger than MAX_FRAME_BYTES."""
    data = json.dumps(message).encode()
    if len(data) > MAX_FRAME_BYTES:
        raise ValueError(f"a value of {len(data):,} bytes: more than {MAX_FRAME_BYTES:,} do not cross")
    left = memoryview(_HEADER.pack(len(data)) + data)
    while left:
        left = left[os.write(descriptor, left) :]


def receive(descriptor: int) -> Any:
    """Reads one frame. Raises EOFError when the other side is gone, ValueError for what is no frame."""
    (size,) = _HEADER.unpack(_exactly(descriptor, _HEADER.size))
    if size > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {size:,} bytes")
    return json.loads(_exactly(descriptor, size))


def _exactly(descriptor: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(descriptor, min(size, 1 << 20))
        if not part:
            raise EOFError("the program's process has ended")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


# tag: (type, value -> plain data, plain data -> value); nested values are encoded before and decoded after.
TAGGED: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "int": (int, hex, lambda text: int(text, 16)),
    "tuple": (tuple, list, tuple),
    "set": (set, list, set),
    "frozenset": (frozenset, list, frozenset),
    "deque": (deque, list, deque),
    "dict": (dict, lambda value: [list(pair) for pair in value.items()], dict),
    "bytes": (bytes, bytes.hex, bytes.fromhex),
    "bytearray": (bytearray, bytearray.hex, bytearray.fromhex),
    "complex": (complex, lambda value: [value.real, value.imag], lambda parts: complex(*parts)),
    "range": (range, lambda value: [value.start, value.stop, value.step], lambda parts: range(*parts)),
    "Decimal": (Decimal, str, Decimal),
    "Fraction": (Fraction, lambda value: [value.numerator, value.denominator], lambda parts: Fraction(*parts)),
    "datetime": (datetime, datetime.isoformat, datetime.fromisoformat),
    "date": (date, date.isoformat, date.fromisoformat),
    "time": (time, time.isoformat, time.fromisoformat),
    "timedelta": (timedelta, lambda v: [v.days, v.seconds, v.microseconds], lambda parts: timedelta(*parts)),
}
TAGS = {kind: tag for tag, (kind, _, _) in TAGGED.items()}
PLAIN_BASES = (str, float, list, *TAGS)
MUTABLE = (list, dict, set, bytearray, deque)


def is_bare(value: Any) -> bool:
    """Does JSON carry it as it is? (Integers beyond 2^53 travel as hexadecimal digits.)"""
    kind = type(value)
    return value is None or kind in (bool, float, str) or (kind is int and -SAFE_INT < value < SAFE_INT)


def restore(target: Any, value: Any) -> None:
    """Gives a mutable argument the content that it has after the call, on the other side."""
    if isinstance(target, (list, bytearray)):
        target[:] = value
    else:
        target.clear()
        (target.extend if isinstance(target, deque) else target.update)(value)

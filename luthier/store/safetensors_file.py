"""The header of a safetensors file, held against the rules of the format before any reader maps the tensors.

The format (https://github.com/huggingface/safetensors#format): 8 bytes of length, a JSON object, then the bytes. A
parser may be lenient where another is not, so what is ambiguous is refused here: keys that stand twice, offsets that
overlap, leave holes or reach out of the file, sizes that contradict shape and type. Limits are far above real models.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 200_000
MAX_ELEMENTS = 1 << 50
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


def header_problem(path: Path) -> str:
    """What is wrong with a safetensors file's header, or ''. Raises OSError when the file cannot be read."""
    try:
        header, start = read_header(path)
        return _check(header, path.stat().st_size - start)
    except ValueError as error:
        return str(error)


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """(the header: name -> dtype, shape and data_offsets, and `__metadata__`; the byte at which the tensors begin).
    Raises ValueError in words for a file that has none, OSError when it cannot be read. Entries are not checked."""
    size_bytes = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= size_bytes - 8:
            raise ValueError(f"torn or no safetensors file: its header would have {length} of {size_bytes} bytes")
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"a header of {length} bytes, more than {MAX_HEADER_BYTES}")
        text = file.read(length)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_doubles, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"torn or no safetensors file: {error or 'nested too deeply'}") from error
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    return header, 8 + length


def _check(header: dict[str, Any], num_bytes: int) -> str:
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        return "its __metadata__ is not text by text"
    if len(header) > MAX_TENSORS:
        return f"{len(header)} tensors, more than {MAX_TENSORS}"
    spans = []
    for name, entry in header.items():
        if problem := _check_entry(entry):
            return f"tensor {name[:200]!r}: {problem}"
        spans.append((*entry["data_offsets"], name))
    reached = 0
    for start, stop, name in sorted(spans):
        if start != reached:
            return f"tensor {name[:200]!r} starts at byte {start}, the one before it ends at {reached}"
        reached = stop
    return "" if reached == num_bytes else f"torn: its tensors take {reached} bytes, the file holds {num_bytes}"


def _check_entry(entry: Any) -> str:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        return "not dtype, shape and data_offsets"
    shape, offsets, bits = entry["shape"], entry["data_offsets"], _BITS.get(str(entry["dtype"]))
    if bits is None:
        return f"unknown dtype {str(entry['dtype'])[:40]!r}"
    if not _whole_numbers(shape) or not _whole_numbers(offsets) or len(offsets) != 2:
        return "shape or data_offsets are not whole numbers"
    elements = 1
    for extent in shape:
        elements *= extent
        if elements > MAX_ELEMENTS:
            return "a shape that no memory could hold"
    if (offsets[1] - offsets[0]) * 8 != elements * bits:
        return f"{offsets[1] - offsets[0]} bytes for shape {shape} of {entry['dtype']}"
    return ""


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Python keeps the last of two equal keys, other parsers the first: the same file would be two models."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:200]!r} stands twice")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")

"""Bytes of a file, decompressed on the way, with caps; and lines of bytes with their place in the file.

What: `open_stream` (gz, zst, bz2, xz or plain) and `read_lines`. Why lines of bytes: `str.splitlines` also cuts at
U+2028, NEL and form feeds, which stand inside JSON strings; only \\n ends a line here. Why caps: 42 kB of gzip can hold
4 GB (CWE-409). Memory: one chunk, or one line of at most MAX_LINE_BYTES.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from luthier.errors import DataError

COMPRESSIONS = {"gz": b"\x1f\x8b", "zst": b"\x28\xb5\x2f\xfd", "bz2": b"BZh", "xz": b"\xfd7zXZ\x00"}
CHUNK_BYTES = 1 << 18
MAX_LINE_BYTES = 16 << 20
MAX_RATIO = 100
MAX_UNPACKED_BYTES = 16 << 30
RATIO_FREE_BYTES = 16 << 20  # small files may repeat themselves as much as they like


@dataclass(frozen=True)
class Line:
    """One line. number: from 1, blank lines counted; raw: its bytes with the line end, None where it was longer than
    the cap; sha256: of all its bytes in either case."""

    number: int
    byte_start: int
    byte_len: int
    raw: bytes | None
    sha256: str

    @property
    def data(self) -> bytes | None:
        """The bytes without line end (\\n or \\r\\n) and without the UTF-8 mark of the file's start."""
        if self.raw is None:
            return None
        body = self.raw.removesuffix(b"\n").removesuffix(b"\r")
        return body.removeprefix(b"\xef\xbb\xbf") if self.number == 1 else body


class _Capped(io.RawIOBase):
    """Reads from a decompressor and watches how much comes out per byte of the file."""

    def __init__(self, path: Path, inner: BinaryIO, file: BinaryIO) -> None:
        self._path, self._inner, self._file, self._num_out = path, inner, file, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        try:
            chunk = self._inner.read(len(buffer))
        except (EOFError, OSError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
            raise DataError(
                f"{self._path}: the compressed data is broken or cut off "
                f"after {self._num_out:,} bytes of content ({error})",
                hint="fetch or compress the file again",
            ) from error
        self._num_out += len(chunk)
        num_in = max(self._file.tell(), 1)
        if self._num_out > MAX_UNPACKED_BYTES or self._num_out > max(RATIO_FREE_BYTES, MAX_RATIO * num_in):
            raise DataError(
                f"{self._path}: unpacks to more than {MAX_RATIO} times its size ({self._num_out:,} bytes so far); "
                "refused as a decompression bomb",
                hint="if you trust it, unpack it yourself and name the plain file",
            )
        buffer[: len(chunk)] = chunk
        return len(chunk)


@contextmanager
def open_stream(path: Path, compression: str) -> Iterator[BinaryIO]:
    """The (decompressed) bytes of `path`. compression: "" or a key of COMPRESSIONS.

    Raises DataError when the data is cut off, broken, or unpacks beyond the caps.
    """
    with path.open("rb") as file:
        if not compression:
            yield file
            return
        yield io.BufferedReader(_Capped(path, _inner(file, compression), file), CHUNK_BYTES)  # type: ignore[arg-type]


def _inner(file: BinaryIO, compression: str) -> BinaryIO:
    if compression == "gz":
        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
    if compression == "bz2":
        return bz2.BZ2File(file)  # type: ignore[return-value]
    if compression == "xz":
        return lzma.LZMAFile(file)  # type: ignore[return-value]
    return pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")


def read_lines(stream: BinaryIO, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[Line]:
    """Lines of a binary stream, cut at \\n only. A line beyond `max_line_bytes` is skipped, not held."""
    number, start = 1, 0
    while True:
        data = stream.readline(max_line_bytes + 1)
        if not data:
            return
        if len(data) > max_line_bytes and not data.endswith(b"\n"):
            length, digest = _skip_line(stream, data)
            yield Line(number, start, length, None, digest)
        else:
            length = len(data)
            yield Line(number, start, length, data, hashlib.sha256(data).hexdigest())
        number, start = number + 1, start + length


def _skip_line(stream: BinaryIO, begun: bytes) -> tuple[int, str]:
    length, digest, piece = 0, hashlib.sha256(), begun
    while piece:
        length += len(piece)
        digest.update(piece)
        if piece.endswith(b"\n"):
            break
        piece = stream.readline(CHUNK_BYTES)
    return length, digest.hexdigest()

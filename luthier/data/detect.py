"""What a file really is, from its first bytes; the name's ending is only a hint.

What: `detect` returns container (jsonl, json, csv, text, document, html, parquet, arrow) and compression, or raises
with the next move.
Why by content: downloads arrive under wrong names, and an error page saved as data.jsonl must not become training rows.
When name and content disagree, content wins and a warning says so.
Sources: RFC 1952 (gzip), RFC 8878 (zstd), Apache Parquet and Arrow file formats.
"""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from luthier.data.streams import COMPRESSIONS, open_stream
from luthier.errors import DataError

PEEK_BYTES = 65_536
ROW_KEYS = ("data", "rows", "examples", "items", "records", "samples", "instances", "train")
"""Keys under which exports put the array of rows: {"data": [...]}."""
_WRAPPED = re.compile(rb'"(?:%s)"\s*:\s*\[\s*\{' % "|".join(ROW_KEYS).encode(), re.IGNORECASE)
ENDINGS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "csv", ".txt": "text",
    ".md": "document", ".markdown": "document", ".html": "html", ".htm": "html", ".xhtml": "html",
    ".parquet": "parquet", ".pq": "parquet", ".arrow": "arrow", ".feather": "arrow", ".ipc": "arrow",
}  # fmt: skip
PACKED_ENDINGS = {".gz": "gz", ".gzip": "gz", ".zst": "zst", ".zstd": "zst", ".bz2": "bz2", ".xz": "xz"}
_REFUSED = (
    (b"PK\x03\x04", "a zip archive (or an Excel/Word file)", "unpack it, or save the sheet as CSV"),
    (b"%PDF", "a PDF document", "extract the text first"),
    (b"SQLite format 3", "an SQLite database", "export the table as CSV"),
    (b"FEA1", "a Feather version 1 file", "write it again as Feather 2, Arrow or Parquet"),
    (b"Obj\x01", "an Avro file", "convert it to Parquet or JSONL"),
    (b"ORC", "an ORC file", "convert it to Parquet or JSONL"),
    *((bytes([128, number]), "a Python pickle", "pickles can run code and are never opened; export JSONL instead")
      for number in range(2, 6)),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "fetch the file: git lfs pull"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it and name the files inside"),
    (b"Rar!\x1a\x07", "a RAR archive", "unpack it and name the files inside"),
    (b"\x04\x22\x4d\x18", "packed with LZ4", "unpack it, or pack it as .gz or .zst"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel or Word file", "save the sheet as CSV (UTF-8)"),
    (b"\x93NUMPY", "a NumPy array", "export it as JSONL"),
    (b"\x89HDF", "an HDF5 file", "export it as Parquet or JSONL"),
    (b"\x89PNG", "a picture", "name the file of its texts"),
    (b"\xff\xd8\xff", "a picture", "name the file of its texts"),
)  # fmt: skip
_WIDE_MARKS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_HTML_TAG = re.compile(rb"<[a-zA-Z!?]")
_JSON = re.compile(rb'\[\s*[{\["\]]|\{\s*["}]')
_HTML = re.compile(rb"\s*(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|head|body|\?xml)", re.IGNORECASE)


@dataclass(frozen=True)
class Detected:
    """container: jsonl, json, csv, text (a row a line), document, html (the file is one row), parquet or arrow;
    compression: "", gz, zst, bz2 or xz; warnings: in words."""

    path: Path
    container: str
    compression: str
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.container} ({self.compression})" if self.compression else self.container


def check_regular(path: Path) -> os.stat_result:
    """The file's stat. Raises DataError for what is missing, empty, not a regular file, or not readable."""
    try:
        info = path.stat()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file", hint=_siblings(path)) from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror})", hint="check the path and its permissions"
        ) from error
    if stat.S_ISDIR(info.st_mode):
        raise DataError(
            f"{path}: is a directory, expected a file", hint=f"name its files with a glob, such as {path}/*.jsonl"
        )
    if not stat.S_ISREG(info.st_mode):
        raise DataError(f"{path}: is not a regular file (pipe, socket or device)", hint="save the data to a file first")
    if info.st_size == 0:
        raise DataError(f"{path}: is empty (0 bytes)", hint="leave it out, or fetch it again")
    try:
        with path.open("rb"):
            return info
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", hint="check its permissions") from error


def detect(path: Path) -> Detected:
    """What `path` holds. Raises DataError, with the next move, for everything that is not rows."""
    check_regular(path)
    with path.open("rb") as file:
        head = file.read(PEEK_BYTES)
    compression = _compression(head)
    if compression:
        with open_stream(path, compression) as stream:
            head = stream.read(PEEK_BYTES)
        if again := _compression(head):
            raise DataError(f"{path}: is packed twice ({again} inside {compression})", hint="unpack it once")
    container = _container(path, head, promised(path)[0])
    return Detected(path, container, compression, tuple(_disagreements(path, container, compression)))


def _compression(head: bytes) -> str:
    """A name of COMPRESSIONS, "" for none. Parallel zstd writers begin with a frame to be skipped (RFC 8878, 3.1.2)."""
    if head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5:
        return "zst"
    return next((name for name, magic in COMPRESSIONS.items() if head.startswith(magic)), "")


def _container(path: Path, head: bytes, named: str) -> str:
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):  # a file, or a stream: no text begins so
        return "arrow"
    if named == "html" and _HTML_TAG.search(head):
        return named
    _refuse(path, head)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        raise DataError(f"{path}: holds only white space", hint="remove it from the config or fetch it again")
    if named == "document":
        return named
    if named in ("json", "jsonl") or _JSON.match(text):  # a song begins with [Verse], a header with [id]
        if text.startswith(b"["):
            return "jsonl" if named == "jsonl" and _is_json_line(text) and b"\n[" in text else "json"
        if text.startswith(b"{"):
            is_one = named == "json" and (not _is_json_line(text) or _is_one_wrapper(text))
            return "json" if is_one else "jsonl"
    if named in ("csv", "text", "jsonl"):
        return named
    if named in ("parquet", "arrow"):
        raise DataError(f"{path}: is no {named} file: starts with {text[:12]!r}", hint="is the download complete?")
    if named == "json":
        raise DataError(f"{path}:1: not JSON: starts with {text[:12]!r}", hint="if it is CSV, rename it to .csv")
    lines = text.split(b"\n", 2)
    looks_like_csv = len(lines) > 1 and any(0 < lines[0].count(d) == lines[1].count(d) for d in (b",", b";", b"\t"))
    return "csv" if looks_like_csv else "text"


def _refuse(path: Path, head: bytes) -> None:
    for magic, kind, hint in _REFUSED:
        if head.startswith(magic) and (not magic.isalnum() or b"\x00" in head):  # a word may begin with ORC
            raise DataError(f"{path}: is {kind}; expected CSV, JSON, JSONL, text, Parquet or Arrow", hint=hint)
    if head[257:262] == b"ustar":
        raise DataError(f"{path}: is a tar archive", hint="unpack it and name the files inside")
    for mark, name in _WIDE_MARKS:
        if head.startswith(mark):
            raise DataError(f"{path}: is encoded as {name}; expected UTF-8", hint=_iconv(path, name))
    if _HTML.match(head):
        raise DataError(
            f"{path}: is an HTML or XML page, not data",
            hint="the download probably returned an error or login page: fetch the file again",
        )
    if b"\x00" in head:
        if head.count(b"\x00") > len(head) // 4:
            order = "BE" if head[::2].count(0) > head[1::2].count(0) else "LE"
            hint = _iconv(path, f"UTF-16{order}")
            raise DataError(f"{path}: looks like UTF-16 without a mark; expected UTF-8", hint=hint)
        if head.count(b"\x00") > 8 and sum(byte < 9 for byte in head) > len(head) // 50:
            raise DataError(
                f"{path}: is binary; expected CSV, JSON, JSONL, text, Parquet or Arrow", hint="export it as JSONL"
            )
    if b"\r" in head and b"\n" not in head and len(head) > 200:
        raise DataError(f"{path}: has old Macintosh line ends (CR only)", hint=f"tr '\\r' '\\n' < {path.name} > fixed")


def _is_json_line(text: bytes) -> bool:
    """Is the first line a whole JSON value? A line longer than the peek counts as one: JSONL rows may be long."""
    line, newline, _ = text.partition(b"\n")
    if not newline and len(text) > PEEK_BYTES - 4:
        return True
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _is_one_wrapper(text: bytes) -> bool:
    """Is the first line, a JSON object, an envelope around all rows rather than the first of many rows?"""
    first, _, rest = text.partition(b"\n")
    return not rest.strip() and _WRAPPED.search(first) is not None


def promised(path: Path) -> tuple[str, str]:
    """(container, compression) that the name's endings promise; "" where they promise nothing."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = PACKED_ENDINGS.get(suffixes[-1], "") if suffixes else ""
    rest = suffixes[:-1] if packed else suffixes
    return (ENDINGS.get(rest[-1], "") if rest else ""), packed


def _disagreements(path: Path, container: str, compression: str) -> list[str]:
    named, packed = promised(path)
    found = []
    if named and named != container and {named, container} != {"json", "jsonl"}:
        found.append(f"{path.name}: named like {named}, but its content is {container}; read as {container}")
    if packed != compression:
        says, holds = packed or "not compressed", compression or "not compressed"
        found.append(f"{path.name}: its name says {says}, its content is {holds}; read by its content")
    return found


def _iconv(path: Path, encoding: str) -> str:
    return f"convert it: iconv -f {encoding} -t UTF-8 '{path.name}' > utf8-{path.name}"


def _siblings(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist either"
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())[:8]
    here = "this folder" if folder == Path() else str(folder)
    return f"{here} holds: {', '.join(names)}" if names else f"{here} holds no files"

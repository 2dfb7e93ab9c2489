"""What a pickle would import if it were loaded, read from its opcodes: nothing is ever unpickled here.

luthier opens no pickled weights at all (safetensors only). This reader says why a file is refused, and finds the ones
that were made to run code. A small machine follows the opcodes (pickletools documents them) far enough to know the
strings that STACK_GLOBAL takes its module and name from, through the memo and back; a name that is put together in any
other way counts as hidden. Files are looked at by content: plain pickles of every protocol, several after one another
(torch before 1.6), zip archives (torch since), archives in archives. What is met before a file breaks off counts, for
the unpickler would have run it. Evasions known from picklescan's advisories and "nullifAI" are tests.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill")
HIDDEN = "<hidden>"
MAX_MEMBER_BYTES = 64 << 20
_MAX_OPCODES = 5_000_000
_MAX_DEPTH = 3
_TORCH_MAGIC, _TORCH_PICKLES = 0x1950A86A20F9469CFC6C, 5  # torch/serialization.py, _legacy_save
# All that tensors of a plain state dict need. Whatever else a pickle imports could do something.
_HARMLESS = {
    "collections.OrderedDict", "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter", "torch.Size", "torch.device", "torch.storage.UntypedStorage",
    "torch.nn.parameter.Parameter", "torch.Tensor", "numpy.dtype", "numpy.ndarray",
    "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "_codecs.encode",
    *(f"torch.{kind}Storage" for kind in (
        "Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool",
    )),
    *(f"torch.{kind}" for kind in (
        "float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
    )),
}  # fmt: skip
_TEXT = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"}
_GET, _PUT = {"GET", "BINGET", "LONG_BINGET"}, {"PUT", "BINPUT", "LONG_BINPUT"}
_MARK = object()


@dataclass
class Scan:
    """imports: "module.name" of everything that loading would import; unreadable: why a part could not be read."""

    imports: set[str] = field(default_factory=set)
    unreadable: list[str] = field(default_factory=list)

    @property
    def dangerous(self) -> list[str]:
        """The imports that are more than tensors need, sorted."""
        return sorted(self.imports - _HARMLESS)

    @property
    def why(self) -> str:
        """What speaks against the file in words, or ''."""
        if self.dangerous:
            return f"loading it would import {', '.join(self.dangerous[:5])}"
        return self.unreadable[0] if self.unreadable else ""


def scan_file(path: Path) -> Scan:
    """The imports of a pickle, a torch archive or an archive of either. Raises OSError when it cannot be opened."""
    scan = Scan()
    with open(path, "rb") as file:
        head = file.read(2)
        file.seek(0)
        if zipfile.is_zipfile(file):
            _scan_zip(file, scan, 0)
        elif head == b"PK":
            scan.unreadable.append("a torn zip archive")
        if head != b"PK":  # an archive may also hang on the end of a pickle
            file.seek(0)
            _scan_stream(file, scan)
    return scan


def scan_folder(folder: Path) -> dict[Path, Scan]:
    """Scans of the files of a folder (not of its subfolders) whose names or first bytes say pickle."""
    found = {}
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        with open(path, "rb") as file:
            head = file.read(2)
        if path.suffix.lower() in PICKLE_SUFFIXES or (head[:1] == b"\x80" and head[1:] in b"\x02\x03\x04\x05"):
            found[path] = scan_file(path)
    return found


def _scan_zip(file: Any, scan: Scan, depth: int) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                _scan_member(archive, member, scan, depth)
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, ValueError) as error:
        scan.unreadable.append(f"a zip archive that cannot be read ({error})")


def _scan_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, scan: Scan, depth: int) -> None:
    named = member.filename.lower().endswith(PICKLE_SUFFIXES)
    with archive.open(member) as file:
        head = file.read(4)
        is_pickle = named or (head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"))
        if not is_pickle and head != b"PK\x03\x04":
            return  # raw tensor bytes and text: torch never unpickles them
        data = head + file.read(MAX_MEMBER_BYTES)
    if len(data) > MAX_MEMBER_BYTES:
        scan.unreadable.append(f"{member.filename} is too large to be looked at")
    elif head != b"PK\x03\x04":
        _scan_stream(io.BytesIO(data), scan)
    elif depth >= _MAX_DEPTH:
        scan.unreadable.append(f"{member.filename}: archives nested too deeply")
    else:
        _scan_zip(io.BytesIO(data), scan, depth + 1)


def _scan_stream(file: Any, scan: Scan) -> None:
    """Pickles that follow one another. torch before its zip format: five of them, then raw bytes that nothing loads.

    A file that is no pickle from its first byte on is nothing that loading could run, whatever its name.
    """
    machine, whole, marked = _Machine(scan), 0, file.read(1) == b"\x80"
    file.seek(0)
    while file.read(1) and not (machine.is_torch and whole == _TORCH_PICKLES):
        file.seek(-1, io.SEEK_CUR)
        try:
            machine.run(file)
            whole += 1
        except Exception as error:  # whatever a hostile stream makes pickletools raise
            if marked and not whole:
                scan.unreadable.append(f"not a whole pickle ({error})")
            return


class _Machine:
    """Follows one pickle's stack as far as names need: texts as they are, everything else as None."""

    def __init__(self, scan: Scan) -> None:
        self.scan = scan
        self.left = _MAX_OPCODES
        self.is_torch = False

    def run(self, file: Any) -> None:
        """Reads one pickle to its STOP. Raises for what is no pickle."""
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        for opcode, argument, _ in pickletools.genops(file):
            self.left -= 1
            if self.left < 0:
                raise ValueError("too many opcodes")
            self._step(opcode, argument)

    def _step(self, opcode: Any, argument: Any) -> None:
        name = opcode.name
        self.is_torch |= name == "LONG1" and argument == _TORCH_MAGIC
        if name in _TEXT:
            self.stack.append(argument)
        elif name in ("GLOBAL", "INST"):
            self._meet(*str(argument).split(" ", 1))
            self._apply(opcode)
        elif name == "STACK_GLOBAL":
            attribute, module = self._pop(), self._pop()
            self._meet(module, attribute)
            self.stack.append(None)
        elif name.startswith("EXT"):
            self._meet("copyreg", f"extension {argument}")
            self.stack.append(None)
        elif name in _GET:
            self.stack.append(self.memo.get(int(argument)))
        elif name in _PUT:
            self.memo[int(argument)] = self.stack[-1] if self.stack else None
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1] if self.stack else None
        elif name == "DUP":
            self.stack.append(self.stack[-1] if self.stack else None)
        else:
            self._apply(opcode)

    def _apply(self, opcode: Any) -> None:
        """The effect on the stack that pickletools documents for an opcode, with unknown values."""
        takes, gives = opcode.stack_before, opcode.stack_after
        if pickletools.markobject in takes:
            while self.stack and self.stack.pop() is not _MARK:
                pass
            takes = takes[: takes.index(pickletools.markobject)]
        for _ in takes:
            self._pop()
        self.stack += [_MARK if one is pickletools.markobject else None for one in gives]

    def _pop(self) -> Any:
        return self.stack.pop() if self.stack else None

    def _meet(self, module: Any, attribute: Any) -> None:
        known = isinstance(module, str) and isinstance(attribute, str)
        self.scan.imports.add(f"{module}.{attribute}" if known else HIDDEN)

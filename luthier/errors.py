"""The one error family. Every error a user can meet says what was found, what was expected and, in `hint`, the next
move.

The CLI prints `error: <message>` and `hint: <hint>` and exits with `exit_code`; no traceback reaches a user.
"""

import errno
import os
import re

_PERMISSIONS = "check the path and its permissions; output_dir and LUTHIER_CACHE may name other folders"
_SPACE = "free some space, then run the same command again: finished stages stand"
MACHINE_ERRORS = {
    errno.EACCES: _PERMISSIONS,
    errno.EPERM: _PERMISSIONS,
    errno.EROFS: _PERMISSIONS,
    errno.ENOTDIR: _PERMISSIONS,
    errno.EEXIST: "a file stands where a folder is needed; output_dir and LUTHIER_CACHE may name other folders",
    errno.ELOOP: _PERMISSIONS,
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), then run the same command again: finished stages stand",
    errno.EIO: "look after the disk, then run the same command again: finished stages stand",
}
"""Errors of the machine, not of luthier: errno -> next move."""
DISK_REFUSES = 74  # EX_IOERR of sysexits.h
# How libraries put it that write by themselves: safetensors' Rust, numpy's tofile (under GGUF's writer).
_OS_ERROR, _SHORT_WRITE = re.compile(r"\(os error (\d+)\)"), re.compile(r"^\d+ requested and \d+ written$")


def machine_refusal(error: BaseException) -> tuple[str, str] | None:
    """(what the machine refused, next move), also where a library has only words for it; None for any other error."""
    number = error.errno if isinstance(error, OSError) else None
    if found := _OS_ERROR.search(str(error)):
        number = int(found[1])
    elif isinstance(error, OSError) and _SHORT_WRITE.match(str(error)):
        number = errno.ENOSPC
    name = getattr(error, "filename", None) or "writing"
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # pathlib, up to Python 3.12
        number, name = errno.ELOOP, str(error)
    if number == errno.ENOENT and str(name).startswith("/proc/"):  # what it says to every new file
        number = errno.EACCES
    if number not in MACHINE_ERRORS:
        return None
    return f"{name}: {os.strerror(number)}", MACHINE_ERRORS[number]


class LuthierError(Exception):
    """Base of all errors that luthier raises on purpose. `exit_code` is what the CLI ends with."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(LuthierError, ValueError):
    """The project file or a flag is wrong: unknown key, wrong type, impossible combination."""

    exit_code = 2


class DataError(LuthierError, ValueError):
    """A data file cannot be read or used as a whole (single bad rows are quarantined instead)."""

    exit_code = 2


class BaseModelError(LuthierError, ValueError):
    """A base model cannot be found, converted or understood."""

    exit_code = 2


class TemplateError(LuthierError, ValueError):
    """A chat template cannot be rendered, or a mask obligation fails."""

    exit_code = 2


class TrainError(LuthierError, RuntimeError):
    """Training cannot go on: non-finite numbers, nothing to train, no memory."""


class ArtifactError(LuthierError, RuntimeError):
    """A file that luthier wrote is missing, torn, changed, or not equal to what it should be."""


class EvaluateError(LuthierError, RuntimeError):
    """An evaluation cannot be carried out or must be refused (leaked rows, no cases)."""

    exit_code = 2


class Interrupted(LuthierError):
    """The user or the system asked to stop; what was done is saved and can be resumed."""

    exit_code = 75

"""From the config's paths and globs to a list of files with their roles.

Names in messages are relative to the project file's folder where possible; a path is never handed to a shell.
"""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from pathlib import Path

from luthier.data.detect import check_regular
from luthier.errors import DataError


@dataclass(frozen=True)
class Source:
    """path: real file; name: how messages and rows call it; role: train, test or unlabelled."""

    path: Path
    name: str
    role: str


def find_sources(patterns: tuple[str, ...], role: str, base_dir: Path) -> list[Source]:
    """The files of `patterns` (paths or globs, relative to `base_dir`), each once, sorted within a glob.

    Raises DataError for a pattern that names nothing usable.
    """
    found: dict[Path, Source] = {}
    for pattern in patterns:
        given = Path(pattern).expanduser()
        whole = _without_detours(base_dir / given)
        if not glob.has_magic(pattern) or whole.exists():
            paths = [whole]
        else:
            paths = [Path(path) for path in sorted(glob.glob(str(whole), recursive=True)) if Path(path).is_file()]
        if not paths:
            raise DataError(f"data.{role}: {pattern!r} matches no file under {base_dir}", hint="check the pattern")
        for path in paths:
            check_regular(path)
            found.setdefault(path.resolve(), Source(path, _name(path, base_dir, given.is_absolute()), role))
    return list(found.values())


def check_disjoint(*groups: list[Source]) -> None:
    """Raises DataError when one file has two roles: trained on and tested on is no test."""
    seen: dict[Path, Source] = {}
    for source in (source for group in groups for source in group):
        other = seen.setdefault(source.path.resolve(), source)
        if other.role != source.role:
            raise DataError(
                f"{source.name}: named in data.{other.role} and in data.{source.role}",
                hint="give each file one role; without data.test a test split is made from the training files",
            )


def _without_detours(path: Path) -> Path:
    """The path without `..`, as the file system reads it (a link's parent is the parent of what it points at)."""
    return path.parent.resolve() / path.name if ".." in path.parts else path


def _name(path: Path, base_dir: Path, is_absolute: bool) -> str:
    """Relative to the project file's folder, so that names do not change when the whole tree is moved; a file that
    lies elsewhere and was given by its absolute path keeps that."""
    inside = path.resolve().is_relative_to(base_dir.resolve())
    return os.path.relpath(path.resolve(), base_dir.resolve()) if inside or not is_absolute else str(path)

"""From the config's paths and globs to a list of files with their roles.

Names in messages are relative to the project file's folder where possible; a path is never handed to a shell.
"""

from __future__ import annotations

import glob
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
        whole = base_dir / Path(pattern).expanduser()
        if not glob.has_magic(pattern) or whole.exists():
            paths = [whole]
        else:
            paths = [Path(path) for path in sorted(glob.glob(str(whole), recursive=True)) if Path(path).is_file()]
        if not paths:
            raise DataError(f"data.{role}: {pattern!r} matches no file under {base_dir}", hint="check the pattern")
        for path in paths:
            check_regular(path)
            found.setdefault(path.resolve(), Source(path, _name(path, base_dir), role))
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


def _name(path: Path, base_dir: Path) -> str:
    try:
        return str(path.resolve().relative_to(base_dir.resolve()))
    except ValueError:
        return str(path)

"""From the config's paths, folders, globs and hub addresses to a list of files with their roles.

A folder stands for its data files, at any depth; hidden files, the notes that data sets keep beside their rows and what
luthier itself wrote are left out, and a link that leads out of the folder is refused. Names in messages are relative to
the project file's folder where possible; a path is never handed to a shell.
"""

from __future__ import annotations

import glob
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from luthier.data.detect import ENDINGS, check_regular, promised
from luthier.data.hub import EVERY_FILE, PREFIX, fetch
from luthier.errors import DataError, LuthierError
from luthier.store.publish import read_manifest


@dataclass(frozen=True)
class Source:
    """path: real file; name: how messages and rows call it; role: train, test or unlabelled."""

    path: Path
    name: str
    role: str


def find_sources(patterns: tuple[str, ...], role: str, base_dir: Path, *, allow_hub: bool = False) -> list[Source]:
    """The files of `patterns` (paths, folders or globs relative to `base_dir`, or hub addresses), each once, sorted
    within a pattern.

    Raises DataError for a pattern that names nothing usable.
    """
    found: dict[Path, Source] = {}
    for pattern in patterns:
        if pattern.startswith(PREFIX):
            for path, name in _hub_files(pattern, role, allow_hub=allow_hub):
                found.setdefault(path.resolve(), Source(path, name, role))
            continue
        given = Path(pattern).expanduser()
        whole = _without_detours(base_dir / given)
        if not glob.has_magic(pattern) or whole.exists():
            paths = files_in(whole) if whole.is_dir() else [whole]
        else:
            paths = [Path(path) for path in sorted(glob.glob(str(whole), recursive=True)) if Path(path).is_file()]
            paths = _not_ours(paths)
        if not paths:
            raise DataError(f"{_key(role)}: {pattern!r} matches no file under {base_dir}", hint="check the pattern")
        for path in paths:
            check_regular(path)
            found.setdefault(path.resolve(), Source(path, _name(path, base_dir, given.is_absolute()), role))
    return list(found.values())


def files_in(folder: Path) -> list[Path]:
    """The data files in a folder, at any depth, sorted. Raises DataError when there is none, a link leads out, or the
    folder is a set of named splits: its test rows must not be trained on unasked."""
    splits = folder / "dataset_dict.json"
    if splits.is_file():
        names = ", ".join(sorted(str(path) for path in folder.iterdir() if path.is_dir()))
        raise DataError(f"{folder}: holds several splits (dataset_dict.json)", hint=f"name each by its role: {names}")
    files = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith((".", "_")) for part in inside.parts)
        is_left_out = hidden or path.name in _NOTES or _CACHED.fullmatch(path.name)
        if is_left_out or not promised(path)[0] or not path.is_file():
            continue
        if not path.resolve().is_relative_to(folder.resolve()):
            raise DataError(
                f"{path}: a link that leads out of {folder}", hint="name the file itself, or remove the link"
            )
        files.append(path)
    files = _not_ours(files)
    if not files:
        raise DataError(f"{folder}: holds no data file", hint=f"data files end in {', '.join(ENDINGS)}")
    return files


def _not_ours(paths: list[Path]) -> list[Path]:
    """Those that no stage of ours wrote: runs/ often lies beside the data, and its test rows must not be trained on."""

    @cache
    def is_output(folder: Path) -> bool:
        try:
            return bool(read_manifest(folder))
        except (LuthierError, OSError):
            return folder != folder.parent and is_output(folder.parent)

    return [path for path in paths if not is_output(path.parent)]


_OTHER_SPLIT = re.compile(
    r"(?:^|[^a-z])(?:test|testing|eval|evaluation|dev|valid|validation)(?:[^a-z]|$)", re.IGNORECASE
)
"""How the hub tells splits by the names of files; without a pattern the training split is read."""
_CACHED = re.compile(r"cache-[0-9a-f]+\.arrow")
"""What the datasets library computed from a folder's rows and left beside them."""
_NOTES = {"dataset_info.json", "state.json", "dataset_dict.json", "dataset_infos.json", "README.md", "LICENSE.md"}


def _hub_files(address: str, role: str, *, allow_hub: bool) -> list[tuple[Path, str]]:
    folder, pattern = fetch(address, tuple(ENDINGS), allow_hub=allow_hub)
    paths = [path for path in sorted(folder.glob(pattern)) if path.is_file() and promised(path)[0]]
    paths = [path for path in paths if path.name not in _NOTES]
    if pattern == EVERY_FILE:
        paths = [path for path in paths if not _OTHER_SPLIT.search(path.relative_to(folder).as_posix())] or paths
    if not paths:
        raise DataError(f"{_key(role)}: {address} has no such data file", hint="look at its files on the hub's page")
    head = address.partition("/")[0] + "/" + address.split("/")[1]
    return [(path, f"{head}/{path.relative_to(folder).as_posix()}") for path in paths]


def check_disjoint(*groups: list[Source]) -> None:
    """Raises DataError when one file has two roles: trained on and tested on is no test."""
    seen: dict[Path, Source] = {}
    for source in (source for group in groups for source in group):
        other = seen.setdefault(source.path.resolve(), source)
        if other.role != source.role:
            raise DataError(
                f"{source.name}: named in {_key(other.role)} and in {_key(source.role)}",
                hint="give each file one role; without data.test a test split is made from the training files",
            )


def _key(role: str) -> str:
    return "data.mix.replay.files" if role == "replay" else f"data.{role}"


def _without_detours(path: Path) -> Path:
    """The path without `..`, as the file system reads it (a link's parent is the parent of what it points at)."""
    return path.parent.resolve() / path.name if ".." in path.parts else path


def _name(path: Path, base_dir: Path, is_absolute: bool) -> str:
    """Relative to the project file's folder, so that names do not change when the whole tree is moved; a file that
    lies elsewhere and was given by its absolute path keeps that."""
    inside = path.resolve().is_relative_to(base_dir.resolve())
    return os.path.relpath(path.resolve(), base_dir.resolve()) if inside or not is_absolute else str(path)

"""Atomic outputs: a file or a folder is either whole or does not exist.

Protocol of a folder: write into `.tmp-<name>-<pid>` beside it, fsync every file, write `manifest.json` last (name,
size and sha256 of every file, and a seal over itself), fsync it and the folder, rename once, fsync the parent. No
manifest, no output. The seal finds accidents, not forgers: a forged manifest is found by the manifests that were made
from the true one and name its sha256 (jobs/verify.py).
Why each step: research on crash consistency (arXiv 2511.18323) and the published chaos test of trainers' checkpoints.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from luthier import __version__
from luthier.errors import ArtifactError, ConfigError

MANIFEST = "manifest.json"
_RETIRED = ".tmp-old-"
_READ_BYTES = 1 << 20
_ENTRY_KEYS = {"name", "size_bytes", "sha256"}


def digest_file(path: Path) -> str:
    """sha256 of a file's bytes, as hex."""
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_READ_BYTES):
            sha.update(chunk)
    return sha.hexdigest()


def digest_json(value: Any) -> str:
    """sha256 of a JSON-able value in canonical form (sorted keys, no spaces), as hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replaces the file at `path` by `content` (str is written as UTF-8): readers see the old bytes or the new,
    never half."""
    with writing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` when the block ends well; an exception leaves `path` as it was."""
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder, expected the name of a file", hint="add a file name to it")
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path}: is a device or a pipe, expected a file", hint="give the name of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _fsync(path.parent)


def render_manifest(manifest: dict[str, Any]) -> str:
    """The text of manifest.json: one value has one text, so that its sha256 can be told from the value alone."""
    return json.dumps(manifest, indent=1, default=str) + "\n"


def seal(manifest: dict[str, Any]) -> str:
    """sha256 of a manifest without its seal."""
    return digest_text(render_manifest({key: value for key, value in manifest.items() if key != "seal"}))


def digest_text(text: str) -> str:
    """sha256 of a text's UTF-8 bytes, as hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def _manifest_of(folder: Path, kind: str, **told: dict[str, Any]) -> dict[str, Any]:
    files = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        files.append(
            {
                "name": path.relative_to(folder).as_posix(),
                "size_bytes": path.stat().st_size,
                "sha256": digest_file(path),
            }
        )
    manifest: dict[str, Any] = {"schema_version": 2, "kind": kind, "luthier": __version__, **told, "files": files}
    return manifest | {"seal": seal(manifest)}


@contextmanager
def publishing(
    folder: Path,
    *,
    kind: str,
    inputs: dict[str, Any] | None = None,
    facts: dict[str, Any] | None = None,
    provenance: dict[str, Any] | None = None,
) -> Iterator[Path]:
    """Yields an empty temporary folder; on a clean exit seals it with a manifest and renames it to `folder`.

    `facts` may be filled while the block runs: it is read when the manifest is written. `provenance`: what a stage
    says of its making (store/provenance.py). An existing `folder` is replaced. An exception leaves nothing behind.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".tmp-{folder.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    facts = {} if facts is None else facts
    try:
        yield temporary
        manifest = _manifest_of(temporary, kind, provenance=provenance or {}, inputs=inputs or {}, facts=facts)
        for entry in manifest["files"]:
            _fsync(temporary / entry["name"])
        for inner in (path for path in temporary.rglob("*") if path.is_dir()):
            _fsync(inner)
        write_atomic(temporary / MANIFEST, render_manifest(manifest))
        if folder.exists():
            retired = folder.with_name(f"{_RETIRED}{folder.name}-{os.getpid()}")
            os.replace(folder, retired)
            os.replace(temporary, folder)
            shutil.rmtree(retired, ignore_errors=True)
        else:
            os.replace(temporary, folder)
        _fsync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a published folder. Raises ArtifactError when it is missing or unreadable."""
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(
            f"{folder}: no {MANIFEST}, so this output was never finished", hint="run the stage again"
        ) from None
    except ValueError as error:
        raise ArtifactError(f"{path}: unreadable ({error})", hint="run the stage again") from None
    parts = manifest if isinstance(manifest, dict) else {}
    entries = parts.get("files")
    whole = isinstance(entries, list) and all(isinstance(e, dict) and e.keys() >= _ENTRY_KEYS for e in entries)
    if not whole or not isinstance(parts.get("facts"), dict):
        raise ArtifactError(f"{path}: not a luthier manifest", hint="run the stage again")
    return manifest


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it was recorded. `expected` and `found` are digests, sizes or words."""

    path: Path
    what: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


def differences(folder: Path) -> list[Difference]:
    """How a published folder differs from its manifest: the manifest itself, and every file that it names."""
    folder, manifest = Path(folder), read_manifest(folder)
    found = []
    told, sealed = str(manifest.get("seal")), seal(manifest)
    if told != sealed or (folder / MANIFEST).read_bytes() != render_manifest(manifest).encode():
        found.append(Difference(folder / MANIFEST, "content differs from the manifest's own seal", told, sealed))
    for entry in manifest["files"]:
        path, size_bytes, sha256 = folder / entry["name"], entry["size_bytes"], entry["sha256"]
        if not path.is_file():
            found.append(Difference(path, "missing", sha256, "nothing"))
        elif path.stat().st_size != size_bytes:
            what = f"{path.stat().st_size} bytes, manifest says {size_bytes}"
            found.append(Difference(path, what, f"{size_bytes} bytes", f"{path.stat().st_size} bytes"))
        elif (actual := digest_file(path)) != sha256:
            found.append(Difference(path, "content differs from the manifest's sha256", sha256, actual))
    return found


def verify_folder(folder: Path) -> list[str]:
    """Problems of a published folder against its manifest (missing, torn or changed files); empty when it is whole."""
    return [str(difference) for difference in differences(folder)]


def sweep(parent: Path) -> None:
    """Clears up in `parent` what a killed process of an earlier run left: an output that it had moved aside for a new
    one that never came goes back to its place, temporary files and folders go.
    """
    for path in Path(parent).glob(".tmp-*-*"):
        stem, _, pid = path.name.rpartition("-")
        if not pid.isdigit() or (int(pid) != os.getpid() and Path(f"/proc/{pid}").exists()):
            continue
        place = path.with_name(stem.removeprefix(_RETIRED))
        if stem.startswith(_RETIRED) and not place.exists():
            os.replace(path, place)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def remove(folder: Path) -> None:
    """Deletes a published folder so that a reader finds it whole or not at all, even if this is cut short."""
    gone = folder.with_name(f".tmp-gone-{folder.name}-{os.getpid()}")
    os.replace(folder, gone)
    shutil.rmtree(gone)

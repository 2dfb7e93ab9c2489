"""What a stage's manifest says of its making: its key, its parents, and everything it was made from, pinned by sha256.

Pinned are the base's files, the tokenizer's files and chat template, the raw data files, and the environment: Python,
luthier's own source and every library that luthier asks for, by version and by the content that the installer recorded
for it (the RECORD file of https://packaging.python.org/en/latest/specifications/recording-installed-packages/).
`luthier verify` walks these manifests back to the raw files.
"""

from __future__ import annotations

import csv
import importlib.metadata
import platform
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

import luthier
from luthier.errors import ArtifactError
from luthier.store.publish import digest_file, digest_json

SOURCE_SUFFIXES = {".py", ".yaml", ".txt"}
# Lines of a RECORD that depend on where and by whom a package was installed, not on what it is.
_LOCAL_FILES = re.compile(r"\.\./|.*\.pyc$|.*\.dist-info/(RECORD|INSTALLER|REQUESTED|direct_url\.json)$")


class Parent(BaseModel):
    """The stage that gave an input: its folder's name, the digest of its files, and the sha256 of its manifest."""

    folder: str
    digest: str
    manifest_sha256: str


class Pin(BaseModel):
    """Files by name and sha256, and one digest over them (base, tokenizer). name: as the project file gives it.
    changes: what section `model` made of the base before training; made_from: then, its files as it came."""

    files: dict[str, str]
    digest: str = ""
    name: str = ""
    licence: str = ""
    template_sha256: str = ""
    changes: dict[str, Any] = Field(default_factory=dict)
    made_from: dict[str, str] = Field(default_factory=dict)


class Provenance(BaseModel):
    """The provenance part of a stage's manifest.

    project: way from the stages' folder to the project file's, from which the names of raw files start. base is absent
    where no weights played a part (prepare). parents: by the name of the input that each gave.
    """

    stage: str
    version: int
    key: str
    project: str
    parents: dict[str, Parent] = Field(default_factory=dict)
    base: Pin | None = None
    tokenizer: Pin
    data: Pin
    environment: dict[str, Any] = Field(default_factory=dict)


def read_provenance(manifest: Mapping[str, Any]) -> Provenance:
    """Raises ArtifactError when a manifest tells nothing of its making, or not in this form."""
    try:
        return Provenance.model_validate(manifest.get("provenance"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "provenance"
        raise ArtifactError(f"no record of its making that can be read ({where}: {first['msg']})") from None


def stage_key(name: str, version: int, inputs: Mapping[str, Any]) -> str:
    """The digest that names a stage's output: what was done (name and version of the code) to what (inputs)."""
    return digest_json({"stage": name, "version": version, "inputs": inputs})


@cache
def environment() -> dict[str, Any]:
    """Python, system, luthier's source and the libraries it asks for, each with a digest of its content."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()}-{platform.machine()}",
        "luthier": {"version": luthier.__version__, "sha256": source_digest(Path(luthier.__file__).parent)},
        "libraries": {name: _installed(name) for name in required_libraries()},
    }


def source_digest(package: Path) -> str:
    """sha256 over the names and contents of a package's source and data files."""
    files = sorted(path for path in package.rglob("*") if path.suffix in SOURCE_SUFFIXES and path.is_file())
    return digest_json({path.relative_to(package).as_posix(): digest_file(path) for path in files})


def required_libraries() -> list[str]:
    """Names of the distributions that luthier needs, without extras; none where luthier is not installed."""
    try:
        lines = importlib.metadata.requires("luthier") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return sorted(re.split(r"[\s<>=!~;\[(]", line)[0].lower() for line in lines if "extra ==" not in line)


def _installed(name: str) -> dict[str, str]:
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return {"version": "", "sha256": ""}
    record = found.read_text("RECORD")
    return {"version": found.version, "sha256": record_digest(record) if record else ""}


def record_digest(record: str) -> str:
    """sha256 over the (path, hash) pairs of a RECORD that say what a package is, wherever it lies."""
    rows = [row for row in csv.reader(record.splitlines()) if len(row) > 1 and not _LOCAL_FILES.match(row[0])]
    return digest_json(sorted((row[0], row[1]) for row in rows))


def environment_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two environments, in words; empty when nothing does."""
    changes = [
        f"{what} {then.get(what)}, here {now[what]}" for what in ("python", "system") if then.get(what) != now[what]
    ]
    pairs = {"luthier": (then.get("luthier", {}), now["luthier"])}
    before, after = then.get("libraries", {}), now["libraries"]
    pairs |= {name: (before.get(name, {}), after.get(name, {})) for name in sorted({*before, *after})}
    for name, (old, new) in pairs.items():
        if old.get("version") != new.get("version"):
            changes.append(f"{name} {old.get('version') or 'absent'}, here {new.get('version') or 'absent'}")
        elif old != new:
            changes.append(f"{name} {old.get('version')} has other files here")
    return changes

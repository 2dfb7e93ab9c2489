"""Content-addressed stages: an output folder named by the digest of everything it depends on, built once, then
reused."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.config.load import Project
from luthier.errors import ArtifactError, ConfigError
from luthier.jobs import console
from luthier.jobs.changes import changed_inputs
from luthier.store.lock import locked
from luthier.store.provenance import Parent, Pin, Provenance, environment, stage_key
from luthier.store.publish import MANIFEST, digest_file, digest_json, publishing, read_manifest, sweep, verify_folder

KEY_CHARS = 12


class NotBuilt(ArtifactError):
    """A stage does not stand, and the project was opened with reuse_only."""


@dataclass(frozen=True)
class Stage:
    """A finished stage. `digest` covers the content of its files; `took_s` is what building it took, then or now."""

    name: str
    folder: Path
    facts: dict[str, Any]
    digest: str
    reused: bool

    @property
    def took_s(self) -> float:
        """Seconds that building this stage took."""
        return float(self.facts.get("took_s", 0.0))


def stage_folder(project: Project, name: str, version: int, inputs: dict[str, Any]) -> Path:
    """Where the output of a stage with these inputs belongs. Bump `version` when the stage's code changes its
    meaning."""
    return project.output_dir / f"{name}-{stage_key(name, version, inputs)[:KEY_CHARS]}"


def content_digest(manifest: Mapping[str, Any]) -> str:
    """The digest of a stage's files: what the stages after it are keyed by."""
    return digest_json({entry["name"]: entry["sha256"] for entry in manifest["files"]})


def provenance(
    project: Project,
    name: str,
    version: int,
    inputs: dict[str, Any],
    pins: Mapping[str, Pin],
    parents: Mapping[str, Stage],
) -> dict[str, Any]:
    """What the stage's manifest will say of its making. pins, parents: see run_stage."""
    links = {
        given_as: Parent(
            folder=parent.folder.name,
            digest=parent.digest,
            manifest_sha256=digest_file(parent.folder / MANIFEST),
        )
        for given_as, parent in parents.items()
    }
    return Provenance(
        stage=name,
        version=version,
        key=stage_key(name, version, inputs),
        project=os.path.relpath(project.folder, project.output_dir),
        parents=links,
        **pins,
        environment=environment(),
    ).model_dump(mode="json", exclude_unset=True)


def _load(name: str, folder: Path, *, reused: bool) -> Stage:
    manifest = read_manifest(folder)
    return Stage(name, folder, manifest["facts"], content_digest(manifest), reused)


def standing(name: str, folder: Path) -> Stage | None:
    """The finished stage in `folder`, or None when it has to be built.

    Every file is held against its sha256, so that a later stage reads what was written. Cost: 0.6 s of processor time
    a GB, and the reading.
    """
    return None if _damage(folder) else _load(name, folder, reused=True)


def _damage(folder: Path) -> str:
    """Why the output in `folder` cannot be used, or ''."""
    try:
        return next(iter(verify_folder(folder)), "")
    except ArtifactError as error:
        return str(error)


def run_stage(
    project: Project,
    name: str,
    version: int,
    inputs: dict[str, Any],
    build: Callable[[Path], dict[str, Any]],
    *,
    pins: Mapping[str, Pin],
    parents: Mapping[str, Stage],
    wait: bool = False,
) -> Stage:
    """Builds the stage unless its output stands. `build` writes into the folder it is given and returns facts to
    keep. pins: digests of what it is made from (jobs/pins.py); parents: input -> the stage whose digest it is. wait:
    for another process that is building it (ArtifactError otherwise). Raises NotBuilt instead of building with
    reuse_only."""
    folder = stage_folder(project, name, version, inputs)
    found = standing(name, folder)
    if project.reuse_only and not found:
        raise NotBuilt(f"no {name} of these settings and data", hint="luthier run builds it")
    if found:
        console.headline(name, f"unchanged, reusing {folder.name} (took {console.duration(found.took_s)})")
        return found
    with alone(folder, wait=wait):
        found = standing(name, folder)  # another process may just have built it
        if found:
            return found
        warn_of_damage(folder)
        sweep(project.output_dir)
        console.headline(name, console.shown(folder))
        if why := changed_inputs(project.output_dir, name, inputs):
            console.line(why)
        started, facts = time.monotonic(), {}
        made = provenance(project, name, version, inputs, pins, parents)
        with publishing(folder, kind=name, inputs=inputs, facts=facts, provenance=made) as temporary:
            facts |= build(temporary)
            facts["took_s"] = round(time.monotonic() - started, 3)
    return _load(name, folder, reused=False)


def warn_of_damage(folder: Path) -> None:
    """Says why an output that lies there is built again."""
    if folder.exists():
        console.warn(f"{console.shown(folder)} is built again: {_damage(folder)}")


@contextmanager
def alone(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Inside, no other process builds `folder`: two would write into one work folder. wait: until the other is done,
    instead of an error."""
    with ExitStack() as held:
        _enter(held, folder, wait=wait)
        yield


def _enter(held: ExitStack, folder: Path, *, wait: bool) -> None:
    lock, hint = folder.with_name(f".lock-{folder.name}"), "wait until it is done, or set another output_dir"
    try:
        held.enter_context(locked(lock, what=folder.name, hint=hint))
    except OSError as error:
        raise ConfigError(
            f"{folder.parent}: cannot be written ({error.strerror})", hint="set output_dir to a folder that you own"
        ) from error
    except ArtifactError as error:
        if not wait:
            raise
        console.line(f"{error}; waiting until it is done")
        held.enter_context(locked(lock, what=folder.name, wait=True))

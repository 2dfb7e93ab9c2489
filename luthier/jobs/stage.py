"""Content-addressed stages: an output folder named by the digest of everything it depends on, built once, then
reused."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.config.load import Project
from luthier.jobs import console
from luthier.store.publish import digest_json, is_published, publishing, read_manifest, sweep

KEY_CHARS = 12


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
    key = digest_json({"stage": name, "version": version, "inputs": inputs})
    return project.output_dir / f"{name}-{key[:KEY_CHARS]}"


def _load(name: str, folder: Path, *, reused: bool) -> Stage:
    manifest = read_manifest(folder)
    content = {entry["name"]: entry["sha256"] for entry in manifest["files"]}
    return Stage(name, folder, manifest["facts"], digest_json(content), reused)


def standing(name: str, folder: Path) -> Stage | None:
    """The finished stage in `folder`, or None when it has to be built."""
    return _load(name, folder, reused=True) if is_published(folder) else None


def run_stage(
    project: Project, name: str, version: int, inputs: dict[str, Any], build: Callable[[Path], dict[str, Any]]
) -> Stage:
    """Builds the stage unless its output stands. `build` writes into the folder it is given and returns facts to
    keep."""
    folder = stage_folder(project, name, version, inputs)
    found = standing(name, folder)
    if found:
        console.headline(name, f"unchanged, reusing {folder.name} (took {console.duration(found.took_s)})")
        return found
    sweep(project.output_dir)
    console.headline(name, os.path.relpath(folder))
    started, facts = time.monotonic(), {}
    with publishing(folder, kind=name, inputs=inputs, facts=facts) as temporary:
        facts |= build(temporary)
        facts["took_s"] = round(time.monotonic() - started, 3)
    return _load(name, folder, reused=False)

"""Collects what passed into the folder a user takes away: merged/, GGUF files, Modelfile, adapter/, README.md,
parity.json, lineage.json.

An artefact below its limits is left out, and the report, the card and parity.json say so. Files are hard-linked where
the file system allows, since they are never written again. The folder appears at once, with a manifest
(store/publish.py).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import ArtifactError
from luthier.ship.artefact import Artefact
from luthier.ship.card import CardFacts, model_card
from luthier.store.publish import publishing

LINEAGE = "lineage.json"
_MODELFILE_ORDER = ("gguf-q8_0", "gguf-f16", "gguf-q4_1", "gguf-q4_0")


@dataclass(frozen=True)
class PublishReport:
    """What went out and what did not. withheld: name -> reasons. modelfile_for: the file the Modelfile names, or ''."""

    folder: Path
    published: tuple[str, ...]
    withheld: dict[str, tuple[str, ...]]
    modelfile_for: str


def publish(
    out: Path,
    artefacts: Sequence[Artefact],
    *,
    adapter: Path,
    facts: CardFacts,
    modelfile: Callable[[str], str] | None = None,
    inputs: dict[str, Any] | None = None,
    provenance: dict[str, Any] | None = None,
    lineage: dict[str, Any] | None = None,
) -> PublishReport:
    """Publishes the artefacts that passed. `modelfile`: GGUF file name -> Modelfile text (see ship.modelfile).

    `inputs`, `provenance`: for the manifest. `lineage`: folder name -> manifest of every stage before this one, so that
    the folder can be traced to its raw files wherever it is carried. Raises ArtifactError when nothing passed.
    """
    passed = [artefact for artefact in artefacts if artefact.passed]
    withheld = {artefact.name: artefact.reasons for artefact in artefacts if not artefact.passed}
    if not passed:
        reasons = "; ".join(f"{name}: {', '.join(why)}" for name, why in withheld.items()) or "no artefact was built"
        raise ArtifactError(
            f"nothing to publish: {reasons}",
            hint="parity.json has the figures; raise no limit without knowing why it failed",
        )
    names = {artefact.name: artefact.file_name for artefact in passed}
    chosen = next((names[kind] for kind in _MODELFILE_ORDER if kind in names), "")
    summary = {"published": sorted(names), "withheld": withheld, "modelfile_for": chosen}
    with publishing(out, kind="model", inputs=inputs, facts=summary, provenance=provenance) as folder:
        for artefact in passed:
            _place(artefact.path, folder / artefact.file_name)
        if "adapter" not in names:
            _place(adapter, folder / "adapter")
        if chosen and modelfile is not None:
            (folder / "Modelfile").write_text(modelfile(chosen), encoding="utf-8")
        records = [record.as_json() for artefact in artefacts for record in artefact.records]
        (folder / "parity.json").write_text(json.dumps(summary | {"records": records}, indent=1) + "\n")
        (folder / "README.md").write_text(model_card(facts, artefacts), encoding="utf-8")
        (folder / LINEAGE).write_text(json.dumps(lineage or {}, indent=1) + "\n", encoding="utf-8")
    return PublishReport(Path(out), tuple(sorted(names)), withheld, chosen)


def _place(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link, ignore=shutil.ignore_patterns("manifest.json"))
    else:
        _link(source, target)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)

"""The artefacts of a build as records on disk: written by build, read by evaluate and publish."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from luthier.bases.resolve import MERGED
from luthier.jobs.stage import Stage
from luthier.ship.artefact import Artefact
from luthier.ship.parity import ParityMetrics, ParityRecord

FILE = "artefacts.json"


def artefact_folders(built: Path) -> tuple[Path, Path]:
    """(merged model, adapter) of a build; just one of them is there."""
    return built / MERGED, built / "adapter"


def write_artefacts(folder: Path, artefacts: Sequence[Artefact]) -> None:
    """Records what was built in `folder`, with its parity."""
    entries = [
        {
            "name": artefact.name,
            "path": artefact.path.relative_to(folder).as_posix(),
            "records": [record.as_json() for record in artefact.records],
            "notes": list(artefact.notes),
        }
        for artefact in artefacts
    ]
    (folder / FILE).write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")


def artefacts_of(stage: Stage) -> list[Artefact]:
    """The artefacts of a finished build."""
    entries = json.loads((stage.folder / FILE).read_text(encoding="utf-8"))
    return [
        Artefact(
            entry["name"], stage.folder / entry["path"], tuple(map(_record, entry["records"])), tuple(entry["notes"])
        )
        for entry in entries
    ]


def _record(value: dict) -> ParityRecord:
    return ParityRecord(**{**value, "metrics": ParityMetrics(**value["metrics"]), "reasons": tuple(value["reasons"])})

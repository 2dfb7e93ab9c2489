"""Why a stage is built although one of its name stands: what its inputs have that the newest one's had not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from luthier.errors import ArtifactError
from luthier.store.publish import MANIFEST, read_manifest

NUM_SHOWN = 4
_LONG = 40


def changed_inputs(output_dir: Path, name: str, inputs: dict[str, Any]) -> str:
    """In words, against the newest finished stage of this name; "" when there is none, or nothing differs."""
    manifests = sorted(output_dir.glob(f"{name}-*/{MANIFEST}"), key=lambda path: path.stat().st_mtime)
    if not manifests:
        return ""
    folder = manifests[-1].parent
    try:
        before = read_manifest(folder)["inputs"]
    except (ArtifactError, KeyError):
        return ""
    found = _differences(before, json.loads(json.dumps(inputs, default=str)), "")
    shown = ", ".join(found[:NUM_SHOWN]) + (f" and {len(found) - NUM_SHOWN} more" if len(found) > NUM_SHOWN else "")
    return f"not {folder.name}, because of {shown}" if found else ""


def _differences(before: Any, now: Any, key: str) -> list[str]:
    if before == now:
        return []
    if isinstance(before, dict) and isinstance(now, dict):
        keys = dict.fromkeys((*before, *now))
        found = [_differences(before.get(k), now.get(k), f"{key}.{k}" if key else str(k)) for k in keys]
        return [words for part in found for words in part]
    change = f"{json.dumps(before)} -> {json.dumps(now)}"
    return [f"{key}: {change}" if len(change) <= _LONG else key]

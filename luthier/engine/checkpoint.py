"""Checkpoints from which a run goes on exactly: weights, moments, random generators, position, best and early-stop
state.

Safetensors and JSON only, no pickle. A folder appears by one atomic rename with its manifest; on start the newest
folder whose manifest verifies wins and torn ones are named and skipped. Rotation never deletes the newest or the
best, and deletes nothing before the new checkpoint has been read back. Only what is trained is saved, never the
frozen base.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from luthier.engine.state import RunState
from luthier.errors import ArtifactError, TrainError
from luthier.store.publish import publishing, sweep, verify_folder

log = logging.getLogger(__name__)
KIND = "checkpoint"
_WEIGHTS, _MOMENTS, _RNG, _STATE = "weights.safetensors", "optimizer.safetensors", "rng.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint in memory."""

    folder: Path
    state: RunState
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    generators: dict[str, Tensor]


def folder_of(root: Path, step: int) -> Path:
    """Where the checkpoint after `step` optimizer steps lies."""
    return Path(root) / f"step-{step:06d}"


def save(
    root: Path, state: RunState, weights: dict[str, Tensor], moments: dict[str, Tensor], guard: dict[str, Any]
) -> Path:
    """Writes the checkpoint of `state.step` atomically and returns its folder."""
    folder = folder_of(root, state.step)
    with publishing(folder, kind=KIND, inputs=guard, facts={"step": state.step}) as temporary:
        save_file({name: t.detach().cpu().contiguous() for name, t in weights.items()}, temporary / _WEIGHTS)
        save_file(moments, temporary / _MOMENTS)
        save_file(_generators(), temporary / _RNG)
        content = {"state": state.as_json(), "guard": guard, "python_gauss": random.getstate()[2]}
        (temporary / _STATE).write_text(json.dumps(content), encoding="utf-8")
    return folder


def load_newest(root: Path, guard: dict[str, Any]) -> Checkpoint | None:
    """The newest whole checkpoint under `root`, or None. Torn ones are skipped with a warning.

    Raises TrainError naming the field when it was made with other data, model or settings than `guard` says.
    """
    sweep(root)
    for folder in reversed(_folders(root)):
        problems = _problems(folder)
        if problems:
            log.warning("checkpoint %s is skipped: %s", folder, "; ".join(problems))
            continue
        content = json.loads((folder / _STATE).read_bytes())
        _check_guard(folder, content["guard"], guard)
        return Checkpoint(
            folder,
            RunState(**content["state"]),
            load_file(folder / _WEIGHTS),
            load_file(folder / _MOMENTS),
            load_file(folder / _RNG),
        )
    return None


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The trained tensors of one checkpoint. Raises ArtifactError when it is torn."""
    problems = _problems(folder)
    if problems:
        raise ArtifactError(
            f"checkpoint {folder} is torn: {'; '.join(problems)}", hint="train again from the one before"
        )
    return load_file(folder / _WEIGHTS)


def rotate(root: Path, *, newest: int, best: int | None, limit: int) -> None:
    """Deletes the oldest checkpoints beyond `limit`; those of steps `newest` and `best` stay whatever the limit is."""
    if _problems(folder_of(root, newest)):
        return  # what was just written does not read back: keep everything that might
    spare = {newest} if best is None else {newest, best}
    others = [folder for folder in _folders(root) if _step_of(folder) not in spare and _step_of(folder) < newest]
    room = max(0, limit - len(spare))
    for folder in others[: len(others) - room]:
        shutil.rmtree(folder)


def restore_generators(checkpoint: Checkpoint) -> None:
    """Puts python's, numpy's and torch's global generators back to where they were when the checkpoint was written."""
    tensors = checkpoint.generators
    gauss = json.loads((checkpoint.folder / _STATE).read_bytes())["python_gauss"]
    random.setstate((3, tuple(tensors["python"].tolist()), gauss))
    has_gauss, cached = tensors["numpy_gauss"].tolist()
    keys = tensors["numpy_keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(tensors["numpy_position"].item()), int(has_gauss), cached))
    torch.set_rng_state(tensors["torch"])
    for index in range(torch.cuda.device_count()):
        if f"cuda.{index}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda.{index}"], index)


def _generators() -> dict[str, Tensor]:
    _, keys, position, has_gauss, cached = np.random.get_state()
    tensors = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(random.getstate()[1], dtype=torch.int64),
        "numpy_keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "numpy_position": torch.tensor(int(position)),
        "numpy_gauss": torch.tensor([float(has_gauss), float(cached)], dtype=torch.float64),
    }
    for index in range(torch.cuda.device_count()):
        tensors[f"cuda.{index}"] = torch.cuda.get_rng_state(index)
    return tensors


def _folders(root: Path) -> list[Path]:
    return sorted((path for path in Path(root).glob("step-*") if path.is_dir()), key=_step_of)


def _step_of(folder: Path) -> int:
    number = folder.name.removeprefix("step-")
    return int(number) if number.isdigit() else -1


def _problems(folder: Path) -> list[str]:
    try:
        return verify_folder(folder)
    except ArtifactError as error:
        return [str(error)]


def _check_guard(folder: Path, saved: dict[str, Any], now: dict[str, Any]) -> None:
    for name in sorted(saved.keys() | now.keys()):
        if saved.get(name) != now.get(name):
            raise TrainError(
                f"cannot go on from {folder}: {name} was {saved.get(name)!r}, now it is {now.get(name)!r}",
                hint=f"put {name} back, or start over in another run folder",
            )

"""Checkpoints from which a run goes on exactly: weights, moments, random generators, position, best and early-stop
state.

Safetensors and JSON only, no pickle. A folder appears by one atomic rename with its manifest (`store/publish.py`); on
start the newest whose manifest verifies wins, and torn ones are named and moved to `torn/`, never deleted. Rotation
keeps the newest and the best, and deletes nothing before the new checkpoint has been read back. Only what is trained is
saved, never the frozen base.
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from luthier.engine.guard import check_guard
from luthier.engine.state import RunState
from luthier.errors import DISK_REFUSES, ArtifactError, TrainError
from luthier.store.publish import publishing, read_manifest, remove, sweep, verify_folder

log = logging.getLogger(__name__)
KIND = "checkpoint"
TORN = "torn"
_WEIGHTS, _MOMENTS, _RNG, _STATE = "weights.safetensors", "optimizer.safetensors", "rng.safetensors", "state.json"
# Free space is asked for before anything is written: what the tensors take, and for headers and file system blocks.
_SPARE_SHARE, _SPARE_BYTES = 0.2, 1 << 20


class SaveFailed(TrainError):
    """A checkpoint could not be written. Those before it stand."""

    exit_code = DISK_REFUSES


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint in memory. machine: what it was made on; lost_best: the step of the best checkpoint when
    that one is not whole any more, and `whole_steps` those that are."""

    folder: Path
    state: RunState
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    generators: dict[str, Tensor]
    machine: dict[str, Any]
    lost_best: int | None = None
    whole_steps: frozenset[int] = frozenset()


def folder_of(root: Path, step: int) -> Path:
    """Where the checkpoint after `step` optimizer steps lies."""
    return Path(root) / f"step-{step:06d}"


def save(
    root: Path,
    state: RunState,
    weights: dict[str, Tensor],
    moments: dict[str, Tensor],
    guard: dict[str, Any],
    machine: dict[str, Any] | None = None,
) -> Path:
    """Writes the checkpoint of `state.step` atomically and returns its folder.

    Raises TrainError for weights that are not finite and SaveFailed when there is no room or the disk refuses; nothing
    is left behind then, and the checkpoints before stand.
    """
    folder, content = folder_of(root, state.step), {"state": state.as_json(), "guard": guard, "machine": machine or {}}
    content["python_gauss"] = random.getstate()[2]
    _refuse_broken(root, state.step, weights)
    need_bytes = sum(tensor.nbytes for tensor in (*weights.values(), *moments.values()))
    need_bytes = int(need_bytes * (1 + _SPARE_SHARE)) + _SPARE_BYTES
    try:
        root.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(root).free < need_bytes:
            raise _save_failed(root, state.step, need_bytes, "too little space")
        with publishing(folder, kind=KIND, inputs=guard, facts={"step": state.step}) as temporary:
            save_file({name: t.detach().cpu().contiguous() for name, t in weights.items()}, temporary / _WEIGHTS)
            save_file(moments, temporary / _MOMENTS)
            save_file(_generators(), temporary / _RNG)
            (temporary / _STATE).write_text(json.dumps(content), encoding="utf-8")
    except (OSError, SafetensorError) as error:  # safetensors' writer has no error numbers, only words
        reason = getattr(error, "strerror", None) or str(error)
        raise _save_failed(root, state.step, need_bytes, reason) from None
    return folder


def _refuse_broken(root: Path, step: int, weights: dict[str, Tensor]) -> None:
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise TrainError(
                f"after step {step} the trained tensor {name} holds numbers that are not finite; no checkpoint of it "
                f"is written{_standing(root)}",
                hint="lower train.learning_rate; with train.save_steps a later run has less to do again",
            )


def _save_failed(root: Path, step: int, need_bytes: int, reason: str) -> SaveFailed:
    free_bytes = shutil.disk_usage(root).free if root.exists() else 0
    return SaveFailed(
        f"{folder_of(root, step)} cannot be written ({reason}): it needs {need_bytes / 2**20:.1f} MiB, "
        f"{free_bytes / 2**20:.1f} MiB are free{_standing(root)}",
        hint="free some space or mend the disk, then run the same command again: it goes on from there, exactly",
    )


def _standing(root: Path) -> str:
    folders = _folders(root)
    return f"; {folders[-1].name} stands" if folders else "; there is none before it"


def load_newest(root: Path, guard: dict[str, Any]) -> Checkpoint | None:
    """The newest whole checkpoint under `root` whose best one is whole too, or None. Torn ones are named in a warning
    and moved to `torn/`. When the best one is lost for all of them, the newest whole one, with `lost_best`.

    The caller holds the folder's lock. Raises TrainError naming the field when it was made with other data, model or
    settings than `guard` says, ArtifactError when a checkpoint may not be read.
    """
    sweep(root)
    whole, without_best = {}, None
    for folder in reversed(_folders(root)):
        if not _take_in(folder, whole):
            continue
        content = json.loads((folder / _STATE).read_bytes())
        check_guard(folder, content["guard"], guard)
        best = content["state"]["best_step"]
        if best is None or _take_in(folder_of(root, best), whole):
            return _load(folder, content)
        without_best = without_best or folder
    if without_best is None:
        return None
    content = json.loads((without_best / _STATE).read_bytes())
    steps = frozenset(_step_of(folder) for folder, is_whole in whole.items() if is_whole)
    return _load(without_best, content, content["state"]["best_step"], steps)


def _take_in(folder: Path, whole: dict[Path, bool]) -> bool:
    """Whether a checkpoint is whole; one that is not is put aside. `whole` remembers the answers."""
    if folder not in whole:
        problems = _problems(folder)
        whole[folder] = not problems
        if problems:
            log.warning("checkpoint %s is skipped: %s%s", folder, "; ".join(problems), _put_aside(folder))
    return whole[folder]


def _load(folder: Path, content: dict[str, Any], lost_best: int | None = None, whole_steps: Any = ()) -> Checkpoint:
    state, machine = RunState(**content["state"]), content["machine"]
    weights, moments, generators = (load_file(folder / name) for name in (_WEIGHTS, _MOMENTS, _RNG))
    return Checkpoint(folder, state, weights, moments, generators, machine, lost_best, frozenset(whole_steps))


def _put_aside(folder: Path) -> str:
    """Moves a torn checkpoint out of the way; says where to."""
    if not folder.exists():
        return ""
    place = folder.parent / TORN / folder.name
    number = 1
    while place.exists():
        number += 1
        place = folder.parent / TORN / f"{folder.name}.{number}"
    place.parent.mkdir(exist_ok=True)
    os.replace(folder, place)
    return f"; it is kept as {place}"


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The trained tensors of one checkpoint. Raises ArtifactError when it is torn."""
    problems = _problems(folder)
    if problems:
        raise ArtifactError(
            f"checkpoint {folder} is torn: {'; '.join(problems)}",
            hint="run the same command again: it goes on from the newest whole checkpoint",
        )
    return load_file(folder / _WEIGHTS)


def rotate(root: Path, *, newest: int, keep: Collection[int], limit: int) -> None:
    """Deletes the oldest checkpoints beyond `limit`; those of step `newest` and of `keep` stay whatever the limit is.

    Raises SaveFailed, and deletes nothing, when what was just written does not read back.
    """
    problems = _problems(folder_of(root, newest))
    if problems:
        raise SaveFailed(
            f"what was just written does not read back: {'; '.join(problems)}; older checkpoints are kept",
            hint="look after the disk, then run the same command again: it goes on from the newest whole checkpoint",
        )
    spare = {newest, *keep}
    others = [folder for folder in _folders(root) if _step_of(folder) not in spare and _step_of(folder) < newest]
    room = max(0, limit - len(spare))
    for folder in others[: len(others) - room]:
        remove(folder)


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
    """Why a checkpoint cannot be used. Raises ArtifactError when this process may not read it: that is no damage."""
    try:
        problems = verify_folder(folder)
        facts = {} if problems else read_manifest(folder)["facts"]
    except PermissionError as error:
        raise ArtifactError(
            f"checkpoint {folder} may not be read ({error.strerror}: {error.filename})",
            hint="give its files back to this user, or run as the user who wrote them",
        ) from None
    except (ArtifactError, OSError) as error:
        return [str(error)]
    if not problems and facts.get("step") != _step_of(folder):
        return [f"its manifest is that of step {facts.get('step')}"]
    return problems

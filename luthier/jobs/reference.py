"""Stage reference: log-probabilities of every training and dev sequence under the base, the adapters off.

They are computed once for a base, a data type and prepared data, whatever beta or rate is tried next. A digest covers
the file; before a run uses it, its first micro-batch is computed again and compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier.config.load import Project
from luthier.data.pack import LayOut, epoch_batches
from luthier.engine.inputs import to_device
from luthier.errors import ArtifactError
from luthier.jobs import console
from luthier.jobs.stage import Stage, run_stage
from luthier.losses.sequences import sequence_logps
from luthier.models.packed import PackedModel
from luthier.types import RowSet

VERSION = 1
_FILE = "logps.npz"
# What another layout of the same rows may change: rounding, in nats per nat of the sum.
_TOLERANCE = {"float32": 1e-4, "int8": 1e-4, "bfloat16": 3e-2, "nf4": 3e-2, "float16": 1e-2}
Table = dict[str, tuple[float, ...]]


def reference_stage(
    project: Project,
    base: Any,
    inputs: dict[str, Any],
    sets: dict[str, RowSet],
    lay_out: LayOut,
    *,
    pins: Any,
    parents: dict[str, Stage],
) -> tuple[Stage, Table]:
    """(stage, row id -> log-probability of each of its sequences). base: a PackedModel with its adapters off; inputs:
    digests of base, prepared data and what the rows become; sets: by split.

    Raises ArtifactError when what lies there is not what the base says now.
    """

    def build(folder: Path) -> dict[str, Any]:
        names, values = [], []
        for split, rows in sets.items():
            packs = _packs(project, rows)
            with console.progress_bar(f"reference, {split}") as progress:
                for done, pack in enumerate(packs, start=1):
                    table = _logps(base, rows, pack, lay_out)
                    names += table
                    values += table.values()
                    progress(done, len(packs))
        np.savez(folder / _FILE, rows=np.asarray(names), logps=np.asarray(values, dtype=np.float64))
        return {"rows": len(names), "dtype": inputs["dtype"]}

    stage = run_stage(project, "reference", VERSION, inputs, build, pins=pins, parents=parents)
    with np.load(stage.folder / _FILE, allow_pickle=False) as stored:
        table = {str(row): tuple(logps) for row, logps in zip(stored["rows"], stored["logps"].tolist(), strict=True)}
    if stage.reused:
        _check(base, sets["train"], _packs(project, sets["train"])[0], lay_out, table, stage, str(inputs["dtype"]))
    return stage, table


def _packs(project: Project, rows: RowSet) -> list[list[int]]:
    return epoch_batches(rows, project.spec.train.micro_batch_tokens, 0, 0)


@torch.no_grad()
def _logps(base: PackedModel, rows: RowSet, pack: list[int], lay_out: LayOut) -> Table:
    chosen = [rows[index] for index in pack]
    batch = to_device(lay_out(chosen), next(iter(base.named_parameters()))[1].device)
    num = len(chosen[0].sequences)
    values = sequence_logps(base, batch, num * len(chosen))[0].double().reshape(-1, num).tolist()
    return {row: tuple(logps) for row, logps in zip(batch.row_ids, values, strict=True)}


def _check(
    base: PackedModel, rows: RowSet, pack: list[int], lay_out: LayOut, table: Table, stage: Stage, dtype: str
) -> None:
    for row, logps in _logps(base, rows, pack, lay_out).items():
        for now, kept in zip(logps, table.get(row, ()), strict=True):
            if abs(now - kept) > _TOLERANCE[dtype] * (1 + abs(now)):
                raise ArtifactError(
                    f"{stage.folder}: row {row} has the log-probability {kept:.4f} there, and {now:.4f} by this base",
                    hint="remove that folder; it is computed again",
                )

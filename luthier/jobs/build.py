"""Stage build: merge, write GGUF files, and hold every artefact against the adapter it came from."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.adapters.peft_files import peft_reads
from luthier.adapters.stored import load_adapter
from luthier.bases.resolve import Base
from luthier.config.load import Project
from luthier.config.ship import ParityLimit, ShipSpec
from luthier.data.stored import read_rows
from luthier.errors import ArtifactError, ConfigError
from luthier.jobs import console
from luthier.jobs.artefacts import artefacts_of, write_artefacts
from luthier.jobs.local import set_threads
from luthier.jobs.objective import check_answers
from luthier.jobs.opened import OpenBase, open_base, open_folder
from luthier.jobs.pins import pin_all
from luthier.jobs.prepare import prepare_stage
from luthier.jobs.stage import Stage, run_stage
from luthier.jobs.train import check_method, train_stage
from luthier.models.load import load_model
from luthier.ship.artefact import Artefact
from luthier.ship.gguf_file import KINDS, GgufLineage, check_exportable, unpack_gguf, write_gguf
from luthier.ship.llama_cpp import LlamaCpp, missing_reason
from luthier.ship.merge import merge
from luthier.ship.parity import (
    LlamaCppCandidate,
    ModelCandidate,
    ParityRecord,
    ParityRow,
    Reference,
    judge,
    model_logits,
    parity,
    record_reference,
)
from luthier.ship.peft_reader import peft_logits
from luthier.store.publish import digest_file
from luthier.types import Row

VERSION = 1
NUM_CTX_MARGIN = 8
_PLAIN = "ship.formats: [] builds and publishes the merged safetensors folder; llama.cpp's own script may read that"


@dataclass(frozen=True)
class _Parity:
    """What every artefact is held against."""

    reference: Reference
    num_ctx: int


def build(project: Project) -> None:
    """The verb: prepares and trains first when that is needed."""
    check_answers(project)
    opened = open_base(project)
    check_formats(project, opened)
    check_method(project, opened)
    prepared = prepare_stage(project, opened)
    build_stage(project, opened, prepared, train_stage(project, opened, prepared))


def check_formats(project: Project, opened: OpenBase) -> None:
    """Raises ConfigError, before data or weights are read, where files are asked for that this method or this base
    cannot give."""
    adapter, ship = project.spec.adapter, project.spec.ship
    if not adapter.facts.mergeable and ship.formats:
        raise ConfigError(
            f"adapter.method {adapter.method} cannot be merged into the base, so there is no merged model and no "
            f"{' or '.join(ship.formats)}",
            hint="ship.formats: [] builds and publishes the adapter folder, which is served on its base",
        )
    if ship.formats:
        try:
            check_exportable(opened.base.folder)
        except ArtifactError as error:
            raise ConfigError(f"ship.formats ({', '.join(ship.formats)}): {error}", hint=error.hint or _PLAIN) from None


def build_stage(project: Project, opened: OpenBase, prepared: Stage, trained: Stage) -> Stage:
    """Merges, exports and checks (or reuses what stands)."""
    ship = project.spec.ship
    inputs = {"ship": ship.model_dump(mode="json"), "train": trained.digest, "base": opened.base.digest}

    def make(folder: Path) -> dict[str, Any]:
        set_threads(project)
        rows = read_rows(prepared.folder, "dev") or read_rows(prepared.folder, "train")
        return _build(project, opened, trained.folder / "adapter", rows, folder)

    pins, parents = pin_all(project, opened, prepared), {"train": trained}
    stage = run_stage(project, "build", VERSION, inputs, make, pins=pins, parents=parents)
    _tell(stage)
    return stage


def _build(project: Project, opened: OpenBase, adapter: Path, rows: Sequence[Row], folder: Path) -> dict[str, Any]:
    ship = project.spec.ship
    if not project.spec.adapter.facts.mergeable:
        return _build_adapter(opened, adapter, rows[: ship.parity_rows], folder, ship)
    report = merge(opened.base.folder, adapter, folder / "merged", stop_ids=opened.codec.stop_ids)
    held = _reference(opened, adapter, rows[: ship.parity_rows], folder)
    artefacts = [Artefact("merged", folder / "merged", (_check_folder(folder / "merged", held, ship),))]
    for kind in ship.formats:
        path = folder / f"model-{kind.removeprefix('gguf-')}.gguf"
        lineage = GgufLineage(
            name=project.folder.name,
            digest=digest_file(adapter / "adapter_model.safetensors"),
            base_name=opened.base.name,
            base_digest=opened.base.origin.digest,
            licence=opened.base.licence,
        )
        written = write_gguf(folder / "merged", path, kind, lineage=lineage)
        try:
            records, refused = (_check_gguf(path, kind, folder / "merged", held, ship),), ()
        except ArtifactError as error:  # hours of training are not lost over a file that nobody can read
            records, refused = (), (str(error).replace(str(path), path.name),)
        artefacts.append(Artefact(kind, path, records, (*written.notes, *refused)))
    (folder / "reference.npy").unlink()
    write_artefacts(folder, artefacts)
    return {
        "changed_share": report.changed_share,
        "artefacts": {artefact.name: artefact.passed for artefact in artefacts},
    }


def _build_adapter(
    opened: OpenBase, adapter: Path, rows: Sequence[Row], folder: Path, ship: ShipSpec
) -> dict[str, Any]:
    """The adapter folder as the artefact, read back on its base: by PEFT where it has the method and a base like it."""
    shutil.copytree(adapter, folder / "adapter")
    held = _reference(opened, adapter, rows, folder)
    if peft_reads(adapter):
        candidate = ModelCandidate("PEFT", peft_logits(opened.base.folder, folder / "adapter"))
    else:
        model = load_model(opened.base.folder)
        load_adapter(model, folder / "adapter")
        candidate = ModelCandidate("luthier", model_logits(model.eval()))
    record = judge("adapter", candidate.name, parity(held.reference, candidate), _limits(ship.thresholds.merged))
    (folder / "reference.npy").unlink()
    artefact = Artefact("adapter", folder / "adapter", (record,), ("is no model by itself: serve it on its base",))
    write_artefacts(folder, [artefact])
    return {"artefacts": {artefact.name: artefact.passed}}


def _reference(opened: OpenBase, adapter: Path, rows: Sequence[Row], folder: Path) -> _Parity:
    model = load_model(opened.base.folder)
    load_adapter(model, adapter)
    model.eval()
    cases = []
    for row in rows:
        if row.text:  # all of a plain text but its first token is trained, so all of that is compared
            ids, start = list(opened.codec.encode(row)[0].ids), 1
        else:
            ids, start = opened.codec.encode_answer(row.prompt, row.answer)
        cases.append(ParityRow(row.id, tuple(ids[:start]), tuple(ids[start:]), row.prompt))
    longest = max(len(case.prompt_ids) + len(case.answer_ids) for case in cases)
    return _Parity(record_reference(model_logits(model), cases, folder / "reference.npy"), longest + NUM_CTX_MARGIN)


def _check_folder(path: Path, held: _Parity, ship: ShipSpec) -> ParityRecord:
    model, opened = load_model(path).eval(), open_folder(Base(path.name, path, "", ""))
    candidate = ModelCandidate("luthier", model_logits(model), opened.codec.prompt_ids)
    return judge("merged", candidate.name, parity(held.reference, candidate), _limits(ship.thresholds.merged))


def _check_gguf(path: Path, kind: str, merged: Path, held: _Parity, ship: ShipSpec) -> ParityRecord:
    """Read back by llama.cpp, which is what will serve it; where its wheel is missing, by our own reader."""
    limits = _limits(getattr(ship.thresholds, KINDS[kind].tier))
    if missing_reason() is None:
        with LlamaCpp(path, num_ctx=held.num_ctx) as runner:
            candidate = LlamaCppCandidate(runner)
            return judge(kind, candidate.name, parity(held.reference, candidate), limits)
    console.warn(f"{path.name} is read back by luthier itself: {missing_reason()}")
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        unpack_gguf(path, merged, Path(scratch))
        candidate = ModelCandidate("luthier", model_logits(load_model(scratch).eval()))
        return judge(kind, candidate.name, parity(held.reference, candidate), limits)


def _limits(limit: ParityLimit) -> dict[str, float]:
    return {"kl": limit.kl, "top1": limit.top1}


def _why(artefact: Artefact) -> str:
    """Why it is withheld, with what is known of such files."""
    return "; ".join(dict.fromkeys((*artefact.reasons, *artefact.notes)))


def _tell(stage: Stage) -> None:
    rows = []
    for artefact in artefacts_of(stage):
        metrics = artefact.records[0].metrics if artefact.records else None
        rows.append(
            (
                artefact.file_name,
                f"{artefact.size_bytes / 1e6:.0f} MB",
                f"{metrics.kl_mean:.1e}" if metrics else "-",
                f"{metrics.top1:.1%}" if metrics else "-",
                "equal to what was trained" if artefact.passed else f"withheld: {_why(artefact)}",
            )
        )
    console.table(
        "", ("         artefact", "size", "KL", "same top-1", "parity"), [("         " + r[0], *r[1:]) for r in rows]
    )

"""Stage publish: after a verdict of SHIP_TUNE, everything a user of the model needs in one folder."""

from __future__ import annotations

from luthier.bases.derived import config_changes
from luthier.config.load import Project
from luthier.data.stored import read_rows
from luthier.errors import ArtifactError
from luthier.jobs import console
from luthier.jobs.artefacts import artefacts_of
from luthier.jobs.evaluate import read_verdict
from luthier.jobs.opened import OpenBase
from luthier.jobs.pins import pin_all
from luthier.jobs.stage import Stage, alone, provenance, stage_folder, standing, warn_of_damage
from luthier.ship.card import CardFacts
from luthier.ship.modelfile import write_modelfile
from luthier.ship.publish import publish
from luthier.store.publish import digest_json, read_manifest

VERSION = 2


def publish_stage(
    project: Project, opened: OpenBase, prepared: Stage, trained: Stage, built: Stage, judged: Stage
) -> Stage | None:
    """Publishes the artefacts that passed parity, or nothing when the verdict is not SHIP_TUNE."""
    verdict = read_verdict(judged)
    if verdict["verdict"] != "SHIP_TUNE":
        console.headline("publish", f"nothing, because the verdict is {verdict['verdict']}")
        return None
    inputs = {"build": built.digest, "evaluate": judged.digest}
    folder = stage_folder(project, "published", VERSION, inputs)
    found = standing("published", folder)
    if found:
        console.headline("publish", f"unchanged, reusing {folder.name}")
        return found
    pins, parents = pin_all(project, opened, prepared), {"build": built, "evaluate": judged}
    with alone(folder):
        warn_of_damage(folder)
        console.headline("publish", folder.name)
        num_ctx = max(2048, project.spec.train.sequence_len)
        facts = _card_facts(project, opened, prepared, trained, verdict)
        report = publish(
            folder,
            artefacts_of(built),
            adapter=trained.folder / "adapter",
            facts=facts,
            modelfile=lambda file: _modelfile(file, opened, num_ctx, facts.system),
            inputs=inputs,
            provenance=provenance(project, "published", VERSION, inputs, pins, parents),
            lineage={stage.folder.name: read_manifest(stage.folder) for stage in (prepared, trained, built, judged)},
        )
    for name, reasons in report.withheld.items():
        console.warn(f"{name} is not published: {'; '.join(reasons)}")
    return standing("published", folder)


def _shared_system(prepared: Stage) -> str:
    """The system message that every training row has, schema in words included; "" when they differ or have none."""
    rows = read_rows(prepared.folder, "train")
    found = {row.prompt[0]["content"] if row.prompt and row.prompt[0]["role"] == "system" else "" for row in rows}
    return found.pop() if len(found) == 1 else ""


def _modelfile(file: str, opened: OpenBase, num_ctx: int, system: str) -> str:
    """With the system message that was trained under; one that a Modelfile cannot hold is said there and here."""
    try:
        return write_modelfile(file, opened.codec, num_ctx=num_ctx, system=system)
    except ArtifactError as error:
        if not system:
            raise
        console.warn(f"the Modelfile is without the system message of the training rows: {error}")
        told = f"WITHOUT THE SYSTEM MESSAGE of the training rows ({error}): send it with every request, see README.md"
        return write_modelfile(file, opened.codec, num_ctx=num_ctx, comments=(told,))


def _card_facts(project: Project, opened: OpenBase, prepared: Stage, trained: Stage, verdict: dict) -> CardFacts:
    spec, facts = project.spec, trained.facts
    figures = ("steps", "best_step", "dev_loss", "tokens", "trained_tokens", "seconds", "num_trainable")
    return CardFacts(
        name=project.folder.name,
        base_name=opened.base.name,
        base_digest=opened.base.origin.digest,
        base_config=config_changes(opened.base),
        base_licence=opened.base.licence,
        data_digest=prepared.digest,
        config_digest=digest_json(spec.model_dump(mode="json")),
        goal=spec.goal.model_dump(mode="json"),
        adapter=spec.adapter.model_dump(mode="json"),
        training={name: facts[name] for name in figures},
        data=prepared.facts["splits"],
        verdict=verdict,
        system=_shared_system(prepared),
        limits=(
            "Judged only on rows like those of the project's test split, and only by the gates that the verdict names.",
        ),
    )

"""The digests of a run's sources as every stage's manifest records them: base, tokenizer and template, raw data."""

from __future__ import annotations

import os

from luthier.bases.derived import changes_of
from luthier.bases.folder import file_digests
from luthier.bases.resolve import default_cache_dir
from luthier.config.load import Project
from luthier.jobs.opened import OpenBase
from luthier.jobs.stage import Stage
from luthier.store.provenance import Pin, read_provenance
from luthier.store.publish import digest_text, read_manifest


def pin_data(opened: OpenBase, files: dict[str, str]) -> dict[str, Pin]:
    """What `prepare` is made from: raw files (name -> sha256) and the tokenizer; base weights play no part in it."""
    return {"tokenizer": _tokenizer(opened), "data": Pin(files=files)}


def pin_all(project: Project, opened: OpenBase, prepared: Stage) -> dict[str, Pin]:
    """What every later stage is made from: the base's files, the tokenizer, and the raw data of the prepared rows."""
    found, cache = opened.base, default_cache_dir()
    base = Pin(
        name=_base_name(project, opened),
        digest=found.digest,
        licence=found.licence,
        files=file_digests(found.folder, cache),
    )
    if found.source is not None:
        made_from = file_digests(found.source.folder, cache)
        base = base.model_copy(update={"changes": changes_of(project.spec.model), "made_from": made_from})
    return {
        "base": base,
        "tokenizer": _tokenizer(opened),
        "data": read_provenance(read_manifest(prepared.folder)).data,
    }


def _base_name(project: Project, opened: OpenBase) -> str:
    """model.base as the project file gives it; a folder by its way from the project file, so that both can move, and
    with the build that was taken from it."""
    name = project.spec.model.base
    beside = project.folder / name
    if not beside.is_dir():
        return name
    return os.path.relpath(beside / opened.base.origin.folder.relative_to(beside.resolve()), project.folder)


def _tokenizer(opened: OpenBase) -> Pin:
    template = opened.tokenizer.chat_template
    return Pin(
        digest=opened.tokenizer.digest,
        files=opened.tokenizer.file_digests,
        template_sha256="" if template is None else digest_text(template),
    )

"""`luthier chat`: talk to the built model, any model folder, or the base; answers stream."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from luthier.bases.resolve import resolve_base
from luthier.chat.schema_prompt import with_schema
from luthier.config.load import Project, load_project
from luthier.errors import ArtifactError, ConfigError
from luthier.jobs import console
from luthier.jobs.artefacts import artefact_folders
from luthier.jobs.build import build_stage
from luthier.jobs.local import load_sampler
from luthier.jobs.opened import OpenBase, open_base, open_folder
from luthier.jobs.prepare import prepare_stage, schema_of
from luthier.jobs.stage import NotBuilt
from luthier.jobs.train import train_stage
from luthier.models.sampler import LocalSampler
from luthier.types import Message


def chat(
    config: Path, overrides: list[str], *, model: Path | None, base: bool, message: str | None, max_new_tokens: int
) -> None:
    """One exchange with `message`, else a conversation until an empty line or Ctrl-D."""
    if model is not None and base:
        raise ConfigError("--model and --base exclude each other", hint="give one of them")
    if message is not None and not message.strip():
        raise ConfigError("--message is empty", hint="say something, or leave it out for a conversation")
    system, schema, adapter = "", None, None
    if model is not None and not model.is_dir():
        raise ConfigError(f"--model {model}: no such folder", hint="give the folder of a model, such as build-*/merged")
    if model is not None:
        opened = open_folder(resolve_base(str(model)))
    else:
        project = load_project(config, overrides)
        opened, system = open_base(project), project.spec.data.system
        schema = schema_of(project)
        if not base:
            merged, adapter = artefact_folders(_build_of(project, opened))
            adapter = adapter if adapter.is_dir() else None
            opened = opened if adapter else open_folder(resolve_base(str(merged)))
    sampler = load_sampler(opened.base.folder, opened.codec, opened.base.name, batch_size=1, adapter=adapter)
    history: list[Message] = [{"role": "system", "content": system}] if system else []
    if schema is not None:  # what every training row was asked under
        history = list(with_schema(history, schema))
    if message is not None:
        _answer(sampler, opened, [*history, {"role": "user", "content": message}], max_new_tokens)
        return
    while text := _ask():
        history.append({"role": "user", "content": text})
        history.append({"role": "assistant", "content": _answer(sampler, opened, history, max_new_tokens)})


def _build_of(project: Project, opened: OpenBase) -> Path:
    """The build that the project file, as it stands, leads to. Raises ArtifactError."""
    looked_up = replace(project, reuse_only=True)
    try:
        with console.silence():
            prepared = prepare_stage(looked_up, opened)
            built = build_stage(looked_up, opened, prepared, train_stage(looked_up, opened, prepared))
    except NotBuilt as missing:
        older = sorted(project.output_dir.glob("build-*/merged"), key=lambda path: path.stat().st_mtime)
        other = f"--model {console.shown(older[-1])} for the newest of other settings or data, or " if older else ""
        raise ArtifactError(
            f"nothing is built yet for this project as it stands ({missing})",
            hint=f"luthier run first; {other}--base for the untuned base",
        ) from None
    return built.folder


def _ask() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def _answer(sampler: LocalSampler, opened: OpenBase, messages: list[Message], max_new_tokens: int) -> str:
    """Prints the answer as it comes; returns it."""
    shown, ids = "", []
    for token in sampler.stream(messages, max_new_tokens=max_new_tokens):
        ids.append(token)
        text = opened.codec.parse(ids)
        # A code point may be split over tokens: what still ends in the replacement character is held back.
        if text.startswith(shown) and not text.endswith("�"):
            sys.stdout.write(text[len(shown) :])
            sys.stdout.flush()
            shown = text
    sys.stdout.write("\n")
    return shown

"""`luthier import axolotl.yaml`: an Axolotl configuration as our project file, every key of it accounted for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from luthier.config.axolotl import import_axolotl
from luthier.config.axolotl_reader import Imported, Note
from luthier.config.checks import find_problems
from luthier.config.load import escape_env
from luthier.config.project import ProjectSpec
from luthier.config.yaml_file import read_yaml
from luthier.errors import ConfigError
from luthier.jobs import console
from luthier.store.publish import write_atomic

KINDS = ("no counterpart", "unknown", "not needed")


def import_file(source: Path, output: Path, *, force: bool) -> None:
    """Writes the project file and names every key that has no counterpart. Raises ConfigError, writing nothing, when
    the file asks for something else to be trained than this version trains."""
    raw, lines = read_yaml(source)
    if not isinstance(raw, dict) or "base_model" not in raw:
        raise ConfigError(f"{source}: no Axolotl configuration (it has no base_model)", hint="give the YAML of a run")
    if not isinstance(raw["base_model"], str) or not raw["base_model"].strip():
        words = f"base_model: expected a folder or a name, got {raw['base_model']!r}"
        raise ConfigError(f"{source}:{lines['base_model']}: {words}", hint="write the base's folder there")
    if output.exists() and not force:
        raise ConfigError(f"{output}: exists already", hint="--force replaces it, -o writes elsewhere")
    done = import_axolotl(raw, lines, is_local=lambda path: bool(path) and _found(path, source) is not None)
    refused = done.of_kind("refused")
    if refused:
        words = "\n".join(f"{_place(str(source), note)}: {note.key}: {note.text}" for note in refused)
        raise ConfigError(words, hint="nothing was written: the project would train something else")
    _point_from(output, source, done.values)
    _check(done, source)
    write_atomic(output, project_text(source, done))
    for kind in KINDS[:2]:
        for note in done.of_kind(kind):
            console.warn(f"{_place(source.name, note)}: {note.key}: {kind}: {note.text}")
    counts = ", ".join(f"{len(done.of_kind(kind))} {kind}" for kind in ("kept", *KINDS))
    console.line(f"{len(raw)} keys of {source}: {counts}")
    console.line(f"wrote {output}; next: luthier prepare -c {output}")


def _place(name: str, note: Note) -> str:
    """file:line of a key; of one that is not there, the file."""
    return f"{name}:{note.line}" if note.line else name


def _found(path: str, source: Path) -> Path | None:
    """Where a path of the file lies: seen from the current folder, as Axolotl does, or from the file's own."""
    given = Path(path).expanduser()
    return next((base for base in (Path(), source.parent) if (base / given).exists()), None)


def _point_from(output: Path, source: Path, values: dict[str, Any]) -> None:
    """Paths of `values` as the project file must write them: seen from its own folder."""

    def moved(path: str) -> str:
        base = None if path.startswith("hub:") or Path(path).is_absolute() else _found(path, source)
        return path if base is None else os.path.relpath(base / path, output.parent)

    for key in ("data.train", "data.test"):
        if key in values:
            values[key] = [moved(path) for path in values[key]]
    values["model.base"] = moved(values["model.base"])


def _check(done: Imported, source: Path) -> None:
    try:
        spec = ProjectSpec.model_validate(_nested(done.values))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{source}: {key}: {first['msg']}", hint=f"it came from {done.origins.get(key, 'the defaults')}"
        ) from None
    for key, message, hint in find_problems(spec)[:1]:
        raise ConfigError(f"{source}: {key}: {message}", hint=hint)


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for dotted, value in values.items():
        *sections, leaf = dotted.split(".")
        target = nested
        for section in sections:
            target = target.setdefault(section, {})
        target[leaf] = value
    return nested


def project_text(source: Path, done: Imported) -> str:
    """The commented YAML: where each value came from, and below it what became of the other keys."""
    out = [f"# luthier project file, imported from {source.name}. Every key with its meaning: luthier config keys", ""]
    nested = _nested(done.values)
    for section in [name for name in ProjectSpec.model_fields if name in nested]:
        if not isinstance(nested[section], dict):
            out.append(_line(section, nested[section], done.origins.get(section, "")))
            continue
        out.append(f"{section}:")
        for key, value in nested[section].items():
            out.append("  " + _line(key, value, done.origins.get(f"{section}.{key}", "")))
        out.append("")
    out.append("")
    for kind in KINDS:
        notes: list[Note] = done.of_kind(kind)
        if notes:
            out += [f"# {kind.capitalize()} ({source.name}:line key: why, or what happens instead)"]
            out += [f"#   {_place(source.name, note)} {note.key}: {note.text}" for note in notes] + ["#"]
    return "\n".join(out).rstrip("#\n") + "\n"


def _line(key: str, value: Any, origin: str) -> str:
    text = f"{key}: {escape_env(json.dumps(value, ensure_ascii=False))}"
    return f"{text:<44}  # {origin}" if origin else text

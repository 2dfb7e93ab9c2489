"""From `luthier.yaml` and `--set section.key=value` to a resolved, checked ProjectSpec that knows where each value
came from."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from luthier.config.checks import find_problems
from luthier.config.project import ProjectSpec
from luthier.config.secrets import find_secret, redact, strings_in
from luthier.config.yaml_file import MAX_BYTES, parse_yaml, read_yaml
from luthier.errors import ConfigError

_WORDS = {
    "model_type": "expected a section with keys of its own",
    "tuple_type": "expected a list, such as [one, two]",
    "path_type": "expected a path",
    "string_type": "expected text (quote it when it holds braces, brackets or a colon)",
    "int_parsing": "expected a whole number",
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_parsing": "expected a number",
    "float_type": "expected a number",
    "bool_parsing": "expected true or false",
    "bool_type": "expected true or false",
    "too_short": "expected at least one entry",
    "invalid_key": "expected text as a key",
}
_ENV = re.compile(r"\$?\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True)
class Project:
    """A resolved project: the spec, the folder that relative paths start from, and each value's origin.

    reuse_only: stages are looked up, never built (for verbs that only read what stands).
    """

    spec: ProjectSpec
    path: Path
    origins: dict[str, str]
    reuse_only: bool = False

    @property
    def folder(self) -> Path:
        """Folder of the project file."""
        return self.path.resolve().parent

    @property
    def output_dir(self) -> Path:
        """Absolute output folder."""
        return (self.folder / self.spec.output_dir).resolve()


def known_keys(model: type[BaseModel] = ProjectSpec, prefix: str = "") -> list[str]:
    """All dotted keys that a project file may hold, sections included."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        for candidate in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                keys += known_keys(candidate, f"{prefix}{name}.")
    return keys


def _nearest(key: str) -> str:
    keys = known_keys()
    found = difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
    if not found:
        same_leaf = [k for k in keys if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
        leaves = {k.rsplit(".", 1)[-1]: k for k in keys}
        close = difflib.get_close_matches(key.rsplit(".", 1)[-1], list(leaves), n=1, cutoff=0.6)
        found = same_leaf[:1] or [leaves[c] for c in close]
    return f"did you mean {found[0]}?" if found else "`luthier config keys` lists every key"


def _expand_env(value: Any, where: str) -> Any:
    """Replaces ${NAME} in strings by the environment's value; a missing one is an error that names the key.
    $${NAME} stands for the characters ${NAME}."""
    if isinstance(value, dict):
        return {k: _expand_env(v, f"{where}.{k}" if where else str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand_env(v, where) for v in value]
    if not isinstance(value, str):
        return value

    def look_up(match: re.Match[str]) -> str:
        name = match.group(1)
        if match.group().startswith("$$"):
            return match.group()[1:]
        if name not in os.environ:
            raise ConfigError(
                f"{where}: the environment variable {name} is not set",
                hint=f"export {name}=..., or write $${{{name}}} if these very characters are meant",
            )
        return os.environ[name]

    return _ENV.sub(look_up, value)


def escape_env(text: str) -> str:
    """`text` as a project file must write it, so that nothing in it is taken for an environment variable."""
    return _ENV.sub(lambda match: "$" + match.group(), text)


def _refuse_secrets(raw: Any, path: Path, lines: dict[str, int], overridden: set[str]) -> None:
    """Raises ConfigError for a value (or a key) that looks like a secret, without showing it."""
    for dotted, text in strings_in(raw):
        if kind := find_secret(text):
            place, key = _locate(path, lines, redact(dotted).split("."), overridden)
            raise _secret_error(f"{place}: {key or 'a key'}", kind)


def _refuse_secret_lines(path: Path) -> None:
    """The same for what is no value: comments, keys that stand in a wrong place, text that is not YAML."""
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        if kind := find_secret(line):
            raise _secret_error(f"{path}:{number}", kind)


def _secret_error(place: str, kind: str) -> ConfigError:
    return ConfigError(
        f"{place}: holds what looks like a secret ({kind}); values of the project file end in manifests and reports",
        hint="take it out and set it as an environment variable (export HF_TOKEN=..., WANDB_API_KEY=...), where what "
        "needs it reads it; here even ${NAME} would write its value down",
    )


def _apply_override(raw: dict[str, Any], assignment: str) -> str:
    key, equals, text = assignment.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError(
            f"--set {assignment}: expected section.key=value", hint="for example --set train.num_epochs=2"
        )
    if key not in known_keys():
        raise ConfigError(f"--set {key}: unknown key", hint=_nearest(key))
    value, _ = parse_yaml(text, Path("--set"))
    target = raw
    *sections, leaf = key.split(".")
    for section in sections:
        if not isinstance(target.setdefault(section, {}), dict):
            target[section] = {}
        target = target[section]
    target[leaf] = value
    return key


def _locate(path: Path, lines: dict[str, int], parts: Sequence[str | int], overridden: set[str]) -> tuple[str, str]:
    """(place to print, dotted key) of an error location."""
    dotted = ".".join(str(part) for part in parts)
    for cut in range(len(parts), 0, -1):
        prefix = ".".join(str(part) for part in parts[:cut])
        if prefix in overridden:
            return "--set", dotted
        if prefix in lines:
            return f"{path}:{lines[prefix]}", dotted
    return str(path), dotted


def _config_error(error: ValidationError, path: Path, lines: dict[str, int], overridden: set[str]) -> ConfigError:
    messages, hint, items = [], "", error.errors()
    for item in items:
        if item["type"] == "too_short" and any(other["loc"][:-1] == item["loc"] for other in items):
            continue  # entries are there: what is wrong with them is said
        parts = [
            p for p in item["loc"] if not (isinstance(p, str) and (p.startswith("literal[") or p.startswith("tuple[")))
        ]
        place, dotted = _locate(path, lines, parts, overridden)
        if item["type"] == "extra_forbidden":
            messages.append(f"{place}: unknown key {dotted}")
            hint = hint or _nearest(dotted)
        elif item["type"] == "missing":
            messages.append(f"{place}: {dotted} is missing")
            hint = hint or f"add {dotted}; `luthier init DATA_FILE` writes a complete project file"
        else:
            got = "" if isinstance(item["input"], dict) else f", got {item['input']!r}"
            words = _WORDS.get(
                item["type"], item["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
            )
            messages.append(f"{place}: {dotted}: {words}{got}")
            hint = hint or "`luthier config keys` says what each key means"
    return ConfigError("\n".join(dict.fromkeys(messages)), hint=hint)


def _origins(
    spec: BaseModel, path: Path, lines: dict[str, int], overridden: set[str], prefix: str = ""
) -> dict[str, str]:
    origins: dict[str, str] = {}
    for name in type(spec).model_fields:
        dotted, value = f"{prefix}{name}", getattr(spec, name)
        if isinstance(value, BaseModel):
            origins |= _origins(value, path, lines, overridden, f"{dotted}.")
        elif dotted in overridden:
            origins[dotted] = "--set"
        elif dotted in lines:
            origins[dotted] = f"{path.name}:{lines[dotted]}"
        else:
            origins[dotted] = "default"
    return origins


def load_project(path: Path, overrides: Sequence[str] = ()) -> Project:
    """Reads, overrides, expands ${ENV}, validates and cross-checks. Raises ConfigError with file:line, key and next
    move."""
    path = Path(path)
    if path.is_file() and path.stat().st_size <= MAX_BYTES:
        _refuse_secret_lines(path)
    raw, lines = read_yaml(path)
    if not isinstance(raw, dict):
        found = "is empty" if raw is None else f"holds a {type(raw).__name__}"
        raise ConfigError(
            f"{path}: {found}, expected sections such as data: and train:", hint="see `luthier init --help`"
        )
    raw = {key: ({} if value is None and key in ProjectSpec.model_fields else value) for key, value in raw.items()}
    overridden = {_apply_override(raw, assignment) for assignment in overrides}
    raw = _expand_env(raw, "")
    _refuse_secrets(raw, path, lines, overridden)
    for section in ("train", "test", "unlabelled"):
        if isinstance(raw.get("data"), dict) and isinstance(raw["data"].get(section), str):
            raw["data"][section] = [raw["data"][section]]
    try:
        spec = ProjectSpec.model_validate(raw)
    except ValidationError as error:
        raise _config_error(error, path, lines, overridden) from None
    problems = find_problems(spec)
    if problems:
        key, message, hint = problems[0]
        place, _ = _locate(path, lines, key.split("."), overridden)
        raise ConfigError(f"{place}: {key}: {message}", hint=hint)
    return Project(spec, path, _origins(spec, path, lines, overridden))

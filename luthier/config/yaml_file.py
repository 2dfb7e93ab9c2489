"""YAML as people mean it: YAML 1.2 numbers and booleans, no duplicate keys, no alias bombs, no tags, and a line for
every key.

PyYAML follows YAML 1.1, where `2e-5` is a string and `no` is False; this loader replaces those rules on its own
resolver
table (https://yaml.org/spec/1.2.2/#103-core-schema).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from luthier.errors import ConfigError

MAX_ALIASES = 50
MAX_BYTES = 1 << 20
_TAGS = (None, "!", "tag:yaml.org,2002:str")


class _Loader(yaml.SafeLoader):
    """SafeLoader with the YAML 1.2 core schema instead of YAML 1.1's."""


def _whole_number(loader: yaml.SafeLoader, node: yaml.Node) -> int:
    """Decimal digits only (YAML 1.1 also reads octal and base 60), and not more than Python turns into a number."""
    try:
        return int(node.value)
    except ValueError:
        raise yaml.constructor.ConstructorError(None, None, "too long a number", node.start_mark) from None


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("int", r"^[-+]?[0-9]+$", "-+0123456789"),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
    ("float", r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", "-+."),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


def _fail(path: Path, mark: Any, what: str, hint: str = "") -> ConfigError:
    return ConfigError(f"{path}:{mark.line + 1}: {what}", hint=hint)


def _walk(path: Path, node: yaml.Node, prefix: str, lines: dict[str, int]) -> None:
    if isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            lines[f"{prefix}.{position}"] = item.start_mark.line + 1
            _walk(path, item, f"{prefix}.{position}", lines)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value)
        if key in seen:
            raise _fail(
                path, key_node.start_mark, f"key {key!r} stands twice (first on line {seen[key]})", "keep one of them"
            )
        seen[key] = key_node.start_mark.line + 1
        dotted = f"{prefix}.{key}" if prefix else key
        lines[dotted] = seen[key]
        _walk(path, value_node, dotted, lines)


def parse_yaml(text: str, path: Path) -> tuple[Any, dict[str, int]]:
    """(value, {dotted key: 1-based line}). Raises ConfigError naming file and line."""
    num_aliases = 0
    try:
        for event in yaml.parse(text, Loader=_Loader):
            num_aliases += isinstance(event, yaml.AliasEvent)
            if num_aliases > MAX_ALIASES:
                raise _fail(path, event.start_mark, f"more than {MAX_ALIASES} aliases", "write the values out")
            tag = getattr(event, "tag", None)
            if tag not in _TAGS:
                raise _fail(path, event.start_mark, f"tag {tag} is not allowed", "use plain YAML values")
        node = yaml.compose(text, Loader=_Loader)
        lines: dict[str, int] = {}
        if node is None:
            return None, lines
        _walk(path, node, "", lines)
        return yaml.load(text, Loader=_Loader), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        tabs = "\t" in text
        raise ConfigError(
            f"{where}: not valid YAML: {error.problem}",
            hint="YAML is indented with spaces, not tabs"
            if tabs
            else "check the indentation and the quotes on that line",
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply", hint="a project file has three levels") from None


def read_yaml(path: Path) -> tuple[Any, dict[str, int]]:
    """parse_yaml of a file, with clear errors for a missing, huge or wrongly encoded one."""
    if not path.exists():
        raise ConfigError(f"{path}: no such file", hint="`luthier init DATA_FILE` writes one from a look at your data")
    if not path.is_file():
        raise ConfigError(f"{path}: not a file", hint="give the path of the YAML file itself")
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(
            f"{path}: {path.stat().st_size} bytes is too large for a project file", hint="is it a data file?"
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 (byte {error.start})", hint="save the file as UTF-8") from None
    return parse_yaml(text, path)

"""`luthier config show` and `luthier config keys`: the resolved project file and the meaning of every key."""

from __future__ import annotations

import ast
import inspect
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from luthier.config.load import Project, escape_env
from luthier.config.project import ProjectSpec
from luthier.config.yaml_file import parse_yaml
from luthier.jobs import console


def _scalar(value: Any) -> str:
    """One line of YAML that our loader reads back as `value`."""
    if isinstance(value, list):
        return f"[{', '.join(map(_scalar, value))}]"
    if isinstance(value, str):
        value = escape_env(value)
    dump = partial(yaml.safe_dump, default_flow_style=True, width=sys.maxsize, allow_unicode=True)
    text = dump(value).removesuffix("...\n").strip()
    if isinstance(value, str) and ("\n" in text or any(c in value for c in "[]{},") or _read_back(text) != value):
        text = dump(value, default_style='"').strip()
    return text


def _read_back(text: str) -> Any:
    return parse_yaml(text, Path("config show"))[0]


def show(project: Project) -> None:
    """Prints valid YAML: every key with its value and, as a comment, where the value came from."""
    lines: list[tuple[str, str]] = []

    def visit(spec: BaseModel, dumped: dict[str, Any], prefix: str, indent: str) -> None:
        for name in type(spec).model_fields:
            dotted, value = f"{prefix}{name}", getattr(spec, name)
            if isinstance(value, BaseModel):
                lines.append((f"{indent}{name}:", ""))
                visit(value, dumped[name], f"{dotted}.", indent + "  ")
            else:
                lines.append((f"{indent}{name}: {_scalar(dumped[name])}", project.origins[dotted]))

    visit(project.spec, project.spec.model_dump(mode="json"), "", "")
    width = min(60, max(len(text) for text, _ in lines))
    for text, origin in lines:
        # Never folded: a folded line is no YAML any more.
        console.console.print(f"{text:<{width}}  # {origin}" if origin else text, markup=False, soft_wrap=True)


def _meanings(model: type[BaseModel]) -> dict[str, str]:
    """Field -> the string written under it in the source of its spec."""
    body = ast.parse(inspect.cleandoc("\n" + inspect.getsource(model))).body[0]
    found = {}
    for field, doc in pairwise(body.body if isinstance(body, ast.ClassDef) else ()):
        if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant):
            found[ast.unparse(field.target)] = " ".join(str(doc.value.value).split())
    return found


def keys() -> None:
    """Prints every key with its default and meaning."""
    rows: list[tuple[str, str, str]] = []

    def visit(model: type[BaseModel], prefix: str, whole: BaseModel | None = None) -> None:
        meanings = _meanings(model)
        for name, field in model.model_fields.items():
            candidates = (field.annotation, *getattr(field.annotation, "__args__", ()))
            inner = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
            if inner:
                default = field.default if whole is None else getattr(whole, name)
                if type(None) in candidates:
                    words = f"{inspect.getdoc(inner[0])} null = off."
                    rows.append((prefix + name, "null" if default is None else "on", words))
                visit(inner[0], f"{prefix}{name}.", default if isinstance(default, BaseModel) else None)
            else:
                value = field.default if whole is None else getattr(whole, name)
                default = "required" if whole is None and field.is_required() else _scalar(to_jsonable_python(value))
                rows.append((prefix + name, default, meanings.get(name, "")))

    visit(ProjectSpec, "")
    console.table("", ("key", "default", "meaning"), rows)

"""`luthier config show` and `luthier config keys`: the resolved project file and the meaning of every key."""

from __future__ import annotations

import ast
import inspect
import json
from itertools import pairwise
from typing import Any

import yaml
from pydantic import BaseModel

from luthier.config.load import Project
from luthier.config.project import ProjectSpec
from luthier.jobs import console


def _scalar(value: Any) -> str:
    return (
        json.dumps(value, ensure_ascii=False)
        if isinstance(value, str) and ("\n" in value or not value)
        else (
            yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True).removesuffix("...\n").strip()
        )
    )


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
        console.console.print(f"{text:<{width}}  # {origin}" if origin else text, markup=False)


def _meanings(model: type[BaseModel]) -> dict[str, str]:
    """Field -> the string written under it in the source of its spec."""
    body = ast.parse(inspect.cleandoc("\n" + inspect.getsource(model))).body[0].body
    found = {}
    for field, doc in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant):
            found[ast.unparse(field.target)] = str(doc.value.value)
    return found


def keys() -> None:
    """Prints every key with its default and meaning."""
    rows: list[tuple[str, str, str]] = []

    def visit(model: type[BaseModel], prefix: str) -> None:
        meanings = _meanings(model)
        for name, field in model.model_fields.items():
            candidates = (field.annotation, *getattr(field.annotation, "__args__", ()))
            inner = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
            if inner:
                visit(inner[0], f"{prefix}{name}.")
            else:
                default = "required" if field.is_required() else str(field.default)
                rows.append((prefix + name, default, meanings.get(name, "")))

    visit(ProjectSpec, "")
    console.table("", ("key", "default", "meaning"), rows)

"""`luthier recommend`: fills the knobs that the project leaves open, and says why, with the source. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from luthier.config.load import Project, load_project
from luthier.config.yaml_file import read_yaml
from luthier.errors import ConfigError
from luthier.jobs import console
from luthier.jobs.plan import open_shapes
from luthier.jobs.plan_data import find_workload
from luthier.plan.recommend import Proposal, Recommendation, recommend, value_of
from luthier.store.publish import write_atomic


def recommend_knobs(project: Project, *, output: Path | None, as_json: bool) -> None:
    """The verb. output: also write the project with the knobs filled in. Raises ConfigError where that cannot be."""
    shapes, tokenizer = open_shapes(project)
    workload = find_workload(project, tokenizer)
    stated = frozenset(key for key, origin in project.origins.items() if origin != "default")
    made = recommend(project.spec, stated, workload, shapes)
    if output is not None:
        _write(project, [one for one in made.proposals if one.changes], output)
    if as_json:
        console.console.print(json.dumps(asdict(made), indent=1), markup=False, soft_wrap=True)
        return
    _tell(
        made, f"{workload.num_rows:,} rows of {workload.num_tokens / workload.num_rows:.0f} tokens, {workload.source}"
    )
    if output is not None:
        console.line(f"wrote {console.shown(output)}")


def _tell(made: Recommendation, data: str) -> None:
    changed = [one for one in made.proposals if one.changes]
    console.headline("knobs", f"{len(changed)} of {len(made.proposals)} knobs would change")
    console.line(data)
    rows = [(one.key, _yaml(one.now), _verdict(one), one.range, one.why) for one in made.proposals]
    console.table("", ("knob", "now", "recommended", "usual", "why"), rows)
    for text, source in made.advice:
        console.warn(f"{text}. Source: {source}")
    for source, keys in _sources(changed).items():
        console.line(f"{', '.join(keys)}: {source}", "dim")
    if changed:
        console.line("to try it: " + " ".join(f"--set {one.key}={_yaml(one.value)}" for one in changed), "bold")


def _sources(proposals: Sequence[Proposal]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one in proposals:
        found.setdefault(one.source, []).append(one.key)
    return found


def _verdict(one: Proposal) -> str:
    if one.stated:
        return "yours" if one.value == one.now else f"yours (else {_yaml(one.value)})"
    return _yaml(one.value)


def _yaml(value: Any) -> str:
    """A value as the project file and --set take it."""
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def settings_diff(project: Project, settings: Sequence[tuple[str, Any]]) -> list[str]:
    """Other values of keys, as lines of a diff of the project file: a section, then -, then + for each key."""
    lines, section = [], ""
    for key, value in settings:
        name, leaf = key.split(".", 1)
        if name != section:
            section = name
            lines.append(f"    {section}:")
        lines.append(f"  -   {leaf}: {json.dumps(value_of(project.spec, key))}")
        lines.append(f"  +   {leaf}: {json.dumps(value)}")
    return lines


def tell_settings(project: Project, settings: Sequence[tuple[str, Any]]) -> None:
    """The same on the console."""
    for text in settings_diff(project, settings):
        console.line(text, {"-": "red", "+": "green"}.get(text[2], "dim"))


def _write(project: Project, changed: Sequence[Proposal], output: Path) -> None:
    """The project file with a line for each changed knob at the head of its section; comments and order are kept."""
    if output.exists():
        raise ConfigError(f"{output}: exists already", hint="-o names a new file")
    if output.resolve().parent != project.folder:
        raise ConfigError(
            f"{output}: not in {project.folder}", hint="a project's paths start at its file: write it there"
        )
    lines = project.path.read_text(encoding="utf-8-sig").splitlines()
    _, places = read_yaml(project.path)
    for section in dict.fromkeys(one.key.split(".")[0] for one in changed):
        ours = [one for one in changed if one.key.startswith(f"{section}.")]
        first = places.get(section, 0) - 1
        if first < 0:
            lines += ["", f"{section}:", *_lines(ours, "  ")]
            continue
        if lines[first].split("#")[0].rstrip() != f"{section}:":
            raise ConfigError(
                f"{project.path}:{first + 1}: section {section} is not written as a block",
                hint="write its keys on lines of their own, or use the --set line that `luthier recommend` prints",
            )
        inside = next((x for x in lines[first + 1 :] if x.strip() and not x.lstrip().startswith("#")), "")
        indent = inside[: len(inside) - len(inside.lstrip())] or "  "
        lines[first] = "\n".join([lines[first], *_lines(ours, indent)])  # one entry still: the places stay right
    write_atomic(output, "\n".join(lines) + "\n")
    _check(project, changed, output)


def _lines(proposals: Sequence[Proposal], indent: str) -> list[str]:
    return [f"{indent}{one.key.split('.', 1)[1]}: {_yaml(one.value)}  # {one.why}" for one in proposals]


def _check(project: Project, changed: Sequence[Proposal], output: Path) -> None:
    """Raises ConfigError when the written file does not say what was meant."""
    try:
        spec = load_project(output).spec
        wrong = [one.key for one in changed if value_of(spec, one.key) != one.value]
    except ConfigError as error:
        wrong = [str(error)]
    if wrong:
        output.unlink()
        raise ConfigError(f"{project.path}: cannot be rewritten: {wrong[0]}", hint="use the --set line instead")

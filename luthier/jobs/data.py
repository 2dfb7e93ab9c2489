"""`luthier data ...`: rows against real traffic, two preparations side by side, evaluation rows frozen for good."""

from __future__ import annotations

import re
from pathlib import Path

from luthier.config.load import Project
from luthier.data.compare import FAR, SHIFTED, Comparison, Feature, read_traffic
from luthier.data.compare import compare as compare_rows
from luthier.data.diff import diff as diff_folders
from luthier.data.eval_guard import check_name
from luthier.data.eval_guard import freeze as freeze_rows
from luthier.data.stored import read_rows, read_task_rows
from luthier.jobs import console
from luthier.jobs.opened import open_base
from luthier.jobs.prepare import prepare_stage
from luthier.pages.page import Section, join, note, page, paragraph, table
from luthier.store.publish import write_atomic

NUM_SHOWN = 10


def compare(project: Project, traffic: Path, *, policy: str, output: Path | None) -> int:
    """Holds the prepared rows against a sample of traffic. 1 when the policy is refuse and a feature is far, else 0."""
    rows, num_bad = read_traffic(traffic, project.spec.data)
    folder = prepare_stage(project, open_base(project)).folder
    found = compare_rows(read_task_rows(folder), [*read_rows(folder, "dev"), *read_rows(folder, "test")], rows)
    console.headline("compare", f"{console.shown(traffic)}: {len(rows):,} rows read, {num_bad:,} not usable")
    console.table("", ("compared by", "train", "eval", "verdict"), [_line(f) for f in found.features])
    for name, (median, p90) in found.lengths.items():
        console.line(f"{name}: {found.rows[name]:,} rows, prompts of {median} words in the middle, {p90} at 90%")
    for name, share in found.unlike_training.items():
        console.line(f"{name}: {share:.0%} of the prompts resemble no training prompt")
    for warning in [*found.warnings, *_shifts(found)]:
        console.warn(warning)
    if output:
        write_atomic(output, _page(found, traffic))
        console.line(f"report: {console.shown(output)}")
    if found.far and policy == "refuse":
        console.warn(f"refused: {len(found.far)} features are far from the traffic")
        return 1
    return 0


def _line(feature: Feature) -> tuple[str, ...]:
    return (feature.name, *(f"{feature.psi[one]:.2f}" if one in feature.psi else "-" for one in ("train", "eval")),
            feature.verdict)  # fmt: skip


def _shifts(found: Comparison) -> list[str]:
    """What differs most, in words, for every feature that is not the same."""
    said = []
    for feature in found.features:
        if feature.verdict == "same":
            continue
        other = max(feature.psi, key=lambda name: feature.psi[name])
        here, there = feature.shares["traffic"], feature.shares[other]
        gap = {value: abs(here.get(value, 0) - there.get(value, 0)) for value in sorted({*here, *there})}
        value = max(gap, key=lambda name: (gap[name], here.get(name, 0)))
        shares = f"{here.get(value, 0):.0%} of the traffic, {there.get(value, 0):.0%} of {other}"
        said.append(f"{feature.name} is {feature.verdict}: {value!r} is {shares}")
    return said


def _page(found: Comparison, traffic: Path) -> str:
    sections = []
    for feature in found.features:
        values = sorted({value for shares in feature.shares.values() for value in shares}, key=_in_order)
        names = list(feature.shares)
        cells = [(value, *(f"{feature.shares[name].get(value, 0):.1%}" for name in names)) for value in values]
        figures = ", ".join(f"{name} {value:.2f}" for name, value in feature.psi.items())
        kind = {"same": "good", "shifted": "warn", "far": "bad"}[feature.verdict]
        said = note(f"PSI against the traffic: {figures}.", kind)
        sections.append(Section(feature.name, join(said, table(("", *names), cells))))
    lead = paragraph(
        f"PSI over {SHIFTED} is called shifted, over {FAR} far. Share of prompts that resemble no training prompt: ",
        ", ".join(f"{name} {share:.0%}" for name, share in found.unlike_training.items()),
    )
    return page("Rows against traffic", sections, subtitle=f"traffic: {traffic.name}", lead=lead)


def _in_order(value: str) -> tuple[int, str]:
    number = re.match(r"\d+", value)
    return (int(number[0]) if number else -1, value)


def diff(a: Path, b: Path) -> int:
    """Prints what differs between two prepared folders. 1 when a test or dev row of A is a training row of B."""
    found = diff_folders(a, b)
    console.headline("diff", f"{console.shown(a)} -> {console.shown(b)}")
    rows = [(name, *(f"{count:,}" for count in counts)) for name, counts in found.rows.items()]
    console.table("", ("split", "rows in A", "rows in B", "new", "gone"), rows)
    for (old, new), count in found.moved.items():
        console.line(f"{count:,} rows moved from {old} to {new}")
    if found.figures:
        console.table("", ("figure", "A", "B"), [(name, _shown(x), _shown(y)) for name, x, y in found.figures])
    for place in found.into_train[:NUM_SHOWN]:
        console.warn(f"now trained on: {place}")
    if found.into_train:
        console.warn(f"{len(found.into_train):,} rows that were judged on are trained on now (luthier data freeze)")
    return 1 if found.into_train else 0


def _shown(value: object) -> str:
    return f"{value:,}" if isinstance(value, (int, float)) else str(value)


def freeze(project: Project, split: str, name: str) -> None:
    """Registers the rows of a split as a frozen evaluation set beside the project file."""
    check_name(name)
    stage = prepare_stage(project, open_base(project))
    register = project.folder / project.spec.data.frozen
    rows = read_rows(stage.folder, split)
    path = freeze_rows(register, name, rows, stage.folder.name)
    console.headline("freeze", f"{len(rows):,} rows of {split} are frozen as {name!r}")
    console.line(f"{console.shown(path)}, registered in {console.shown(register)}: keep both under version control")

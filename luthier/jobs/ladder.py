"""`luthier ladder`: do more rows, a higher rank, more epochs help? Small runs one step apart, each held against the one
below it on the same dev rows; ends in a diff of the project file and a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from luthier.config.load import Project
from luthier.errors import ConfigError, DataError
from luthier.jobs import console
from luthier.jobs.opened import OpenBase
from luthier.jobs.prepare import prepare_stage
from luthier.jobs.recommend import settings_diff, tell_settings
from luthier.jobs.rungs import (
    Answers,
    Judged,
    base_answers,
    check_dev,
    check_rung,
    figures_of,
    gain_over,
    open_small,
    run_rung,
    told_figures,
)
from luthier.pages.charts import ForestRow, forest, lines
from luthier.pages.page import Section, bullets, code_block, join, page, paragraph, table
from luthier.plan.ladder import MIN_ROWS, SHARES, Axis, Gain, Rung, advice, changes, climb, count, first_rung, top_of
from luthier.store.publish import write_atomic

PAGE = "ladder.html"
_HEADERS = ("rung", "metric (95%)", "dev loss", "training")


@dataclass
class Ladder:
    """The rungs as they are run. The project is the one of small runs (jobs/rungs.py)."""

    project: Project
    opened: OpenBase
    all_rows: int
    judged: dict[Rung, Judged] = field(default_factory=dict)

    def run(self, rung: Rung) -> Judged:
        """Runs a rung once."""
        if rung not in self.judged:
            console.headline("rung", str(rung))
            self.judged[rung] = run_rung(self.project, self.opened, rung, all_rows=self.all_rows)
        return self.judged[rung]

    def gain(self, axis: Axis, lower: Rung, upper: Rung) -> Gain | None:
        """What a rung has over the one below it; None, and a line, where it cannot be run."""
        try:
            check_rung(self.project, self.opened, upper)
        except ConfigError as error:
            console.line(f"no further on {axis}: {error}")
            return None
        found = gain_over(self.project, axis, lower, self.run(lower).answers, self.run(upper))
        console.line(str(found), "bold")
        return found


def ladder(project: Project) -> None:
    """The verb. Raises ConfigError or DataError, before anything is trained, where rungs could not be told apart."""
    small, opened = open_small(project)
    if small.spec.train.max_steps is not None:
        raise ConfigError(
            f"train.max_steps {small.spec.train.max_steps} would end every rung at the same step",
            hint="--set train.max_steps=null",
        )
    climbed = Ladder(small, opened, _count_rows(small, opened))
    first = first_rung(small.spec, climbed.all_rows // SHARES[0])
    base = base_answers(small, opened, climbed.run(first))
    over_base = lambda rung: gain_over(small, "base", None, base, climbed.run(rung))  # noqa: E731
    console.line(str(over_base(first)), "bold")
    gains = climb(first, climbed.all_rows, climbed.gain, lambda rung: over_base(rung).is_shown)
    gains = [over_base(first), *gains]
    _tell(project, climbed, base, gains, beats_base=over_base(top_of(gains)).is_shown)


def _count_rows(small: Project, opened: OpenBase) -> int:
    prepared = prepare_stage(small, opened)
    dev, rows, least = check_dev(small, prepared), prepared.facts["splits"]["train"], small.spec.evaluate.min_pairs
    if rows < MIN_ROWS:
        raise DataError(
            f"{count(rows, 'training row')}: a quarter of them would be a handful of steps, and a ladder needs "
            f"{MIN_ROWS} rows or more",
            hint="luthier run --pilot says what so few rows give; or add rows",
        )
    if dev < least:
        raise DataError(
            f"{count(dev, 'dev row')} are fewer than the {least} that any claim needs (evaluate.min_pairs)",
            hint="give data.split.dev a larger share, or add rows",
        )
    return rows


def _tell(project: Project, climbed: Ladder, base: Answers, gains: Sequence[Gain], *, beats_base: bool) -> None:
    small, (settings, kept) = climbed.project, changes(project.spec, gains, climbed.all_rows)
    said = [*map(str, gains), *advice(gains, climbed.all_rows, beats_base=beats_base), *kept]
    rows = _rows(climbed, base)
    console.headline("ladder", f"{small.spec.evaluate.metric} on {count(gains[0].found.n, 'dev row')}")
    console.table("", _HEADERS, rows)
    for words in said:
        console.line(words)
    console.line("proposed:" if settings else "proposed: the project as it stands", "bold")
    tell_settings(project, settings)
    proposal = code_block("\n".join(settings_diff(project, settings))) if settings else paragraph("Nothing to change.")
    sections = [
        Section("What it says", join(bullets(said), proposal)),
        Section("Learning curve", _curve(climbed, gains)),
        Section("Gains", forest([_bounds(gain) for gain in gains], x_label="points over the rung below")),
        Section("Rungs", table(_HEADERS, rows)),
    ]
    path = small.output_dir / PAGE
    write_atomic(path, page("Ladder of small runs", sections, subtitle=project.path.name))
    console.line(f"page: {console.shown(path)}")


def _rows(climbed: Ladder, base: Answers) -> list[tuple[str, str, str, str]]:
    small = climbed.project
    rows = [("untuned base", told_figures(figures_of(small, base)), "", "")]
    for rung, judged in climbed.judged.items():
        facts, figures = judged.trained.facts, told_figures(figures_of(small, judged.answers))
        rows.append((str(rung), figures, str(facts["dev_loss"]), console.duration(facts["seconds"])))
    return rows


def _curve(climbed: Ladder, gains: Sequence[Gain]) -> str:
    """The metric over the number of training rows, between the bounds of its interval."""
    rungs = [gain.upper for gain in gains if gain.axis in ("base", "rows")]
    found = [(rung.rows, figures_of(climbed.project, climbed.judged[rung].answers)) for rung in rungs]
    names = climbed.project.spec.evaluate.metric, "95% interval: low", "95% interval: high"
    curves = {name: [(rows, figures[part]) for rows, figures in found] for part, name in enumerate(names)}
    return lines(curves, x_label="training rows", y_label=names[0])


def _bounds(gain: Gain) -> ForestRow:
    low, delta, high = (100 * value for value in (gain.found.low, gain.found.delta, gain.found.high))
    status = "pass" if gain.is_shown else "fail" if high < 0 else "inconclusive"
    return _step(gain), low, delta, high, None, status


def _step(gain: Gain) -> str:
    if gain.lower is None:
        return f"base, {count(gain.upper.rows, 'row')}"
    return f"{gain.axis} {getattr(gain.lower, gain.axis):,} to {getattr(gain.upper, gain.axis):,}"

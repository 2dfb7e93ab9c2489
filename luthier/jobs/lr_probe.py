"""`luthier lr-probe`: which learning rate this run can take, by a rate range test on its own rows. Trains nothing."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from luthier.config.load import Project
from luthier.data.pack import EPOCH_PLANS
from luthier.engine.lr_probe import RatePoint, probe_rates, propose_rate, rates_between
from luthier.engine.memory import OutOfMemory
from luthier.errors import ConfigError, Interrupted, TrainError
from luthier.jobs import console
from luthier.jobs.local import set_threads
from luthier.jobs.objective import check_objective, open_objective, read_examples
from luthier.jobs.opened import open_base
from luthier.jobs.prepare import prepare_stage
from luthier.jobs.recommend import tell_settings
from luthier.jobs.session import Session, dtype_of_run, open_adapted, probe_machine
from luthier.jobs.sharing import choose_batches
from luthier.jobs.stopping import stop_flag
from luthier.jobs.train import check_method
from luthier.pages.charts import lines
from luthier.pages.page import Section, join, page, paragraph
from luthier.store.publish import write_atomic

_LINES, _BAR = 20, 30


def lr_probe(project: Project, *, steps: int, lowest: float, highest: float, output: Path | None) -> None:
    """The verb. Raises ConfigError for a range that is none, a page that is none, and an objective without rows."""
    if not 0 < lowest < highest < math.inf:
        raise ConfigError(f"--from {lowest:g} --to {highest:g}: no range", hint="for example --from 1e-6 --to 1")
    if output is not None and output.suffix != ".html":
        raise ConfigError(
            f"--output {output}: the curve is an HTML page", hint=f"--output {output.with_suffix('.html')}"
        )
    if (loss := project.spec.loss).is_online:
        raise ConfigError(
            f"loss.kind {loss.kind}: its loss is near 0 whatever it learns, so a range of rates shows nothing",
            hint="start at a tenth of the rate that suits loss.kind: sft, and watch the reward",
        )
    opened = open_base(project)
    check_method(project, opened)
    check_objective(project, opened)
    prepared = prepare_stage(project, opened)
    examples = read_examples(project, prepared)
    set_threads(project)
    with tempfile.TemporaryDirectory() as folder, console.progress_bar("rates") as progress, stop_flag() as stop:
        session = Session(project, opened, prepared, Path(folder), {}, 0, time.perf_counter())
        model, adapted, dtype = open_adapted(session, examples, dtype_of_run(session, probe_machine(session)))
        lay_out = choose_batches(project.spec, model, examples.train)
        objective = open_objective(project, opened, prepared, adapted, examples, lay_out, dtype)
        try:
            points = probe_rates(
                model, objective.loss, project.spec.train, adapted, train_set=examples.train,
                make_batch=objective.lay_out, plan_epoch=EPOCH_PLANS[project.spec.train.curriculum],
                rates=rates_between(lowest, highest, steps), stop=stop, progress=progress,
            )  # fmt: skip
        except OutOfMemory as error:
            raise TrainError(str(error), hint="lower train.micro_batch_tokens, or take a smaller base") from None
        if stop():
            raise Interrupted("stopped; nothing was trained", hint="run the same command again: it starts anew")
    _tell(project, points)
    if output is not None:
        write_atomic(output, _page(project, points))
        console.line(f"wrote {console.shown(output)}")


def _tell(project: Project, points: Sequence[RatePoint]) -> None:
    rate, why = propose_rate(points)
    console.headline("rates", f"{len(points)} steps, everything put back")
    width = max((abs(point.smoothed) for point in points), default=0.0) or 1.0
    for point in points[:: max(1, math.ceil(len(points) / _LINES))]:
        bar = ("-" if point.smoothed < 0 else "+") * round(_BAR * abs(point.smoothed) / width)
        console.line(f"{point.rate:8.1e}  {point.smoothed:+8.3f}  {bar}")
    if rate is None:
        console.warn(f"no rate is proposed: {why}")
        return
    console.line(f"proposed: {rate:g}, {why}", "bold")
    if rate != project.spec.train.learning_rate:
        tell_settings(project, (("train.learning_rate", rate),))


def _page(project: Project, points: Sequence[RatePoint]) -> str:
    rate, why = propose_rate(points)
    curves = {
        "each step": [(math.log10(point.rate), point.change) for point in points],
        "smoothed": [(math.log10(point.rate), point.smoothed) for point in points],
    }
    marks = {} if rate is None else {f"proposed {rate:g}": math.log10(rate)}
    chart = lines(curves, x_label="log10 of the rate", y_label="loss less that before the first update", marks=marks)
    words = f"no rate is proposed: {why}" if rate is None else f"proposed: {rate:g}, {why}"
    return page("Rate range test", [Section("Curve", join(chart, paragraph(words)))], subtitle=project.path.name)

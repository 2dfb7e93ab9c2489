"""`--profile N`: what the profiler must know of the model and the machine, and its table on the console."""

from __future__ import annotations

from pathlib import Path

from luthier.config.load import Project
from luthier.engine.profile import MEMORY_HEADERS, TIME_HEADERS, StepProfiler, Work
from luthier.jobs import console
from luthier.jobs.stage import Stage
from luthier.models.packed import PackedModel
from luthier.types import MachineProfile

_HEADS = ("lm_head", "embed_out")


def make_profiler(
    num_steps: int, folder: Path, model: PackedModel, rank: int, machine: MachineProfile | None
) -> StepProfiler:
    """A profiler for `model` with its adapters on, of the given rank; the roof is the probe's float32 rate."""
    linears = model.linear_modules()
    heads = [name for name in linears if name.rsplit(".", 1)[-1] in _HEADS]
    per_layer = {n: m.in_features * m.out_features * (6 if m.weight.requires_grad else 4) for n, m in linears.items()}
    work = Work(
        thin_width=rank,
        head_width=max((linears[name].out_features for name in heads), default=0),
        flops_per_token=sum(flops for name, flops in per_layer.items() if name not in heads),
        flops_per_kept=sum(per_layer[name] for name in heads),
        roof_gflops=machine.rates_gflops.get("float32") if machine else None,
    )
    return StepProfiler(num_steps, folder, work)


def tell_profile(profiler: StepProfiler) -> None:
    """The page on the console, and where its files lie."""
    found = profiler.result
    if found is None:
        console.warn("nothing was profiled: the run took fewer than two steps, and the first one only warms up")
        return
    console.line(found.headline())
    indent = " " * 9
    for headers, rows in ((TIME_HEADERS, found.time_rows()), (MEMORY_HEADERS, found.memory_rows())):
        console.table("", (indent + headers[0], *headers[1:]), [(indent + row[0], *row[1:]) for row in rows])
    console.line(f"profile: {console.shown(profiler.folder / 'profile.md')}, trace.json beside it opens in Perfetto")


def tell_nothing_to_profile(project: Project, stage: Stage) -> None:
    """The training stands, so no step will be taken."""
    console.warn(
        f"nothing to profile: {stage.folder.name} is trained already. To profile these steps anyway, train them again "
        f"elsewhere: --set output_dir={project.spec.output_dir.name}-profile"
    )

"""The plan of a run, made before its first step and kept beside what the run then took: for the console and the report.

So every run says how far the plan can be trusted on this machine. Time is the whole of it: start-up, steps, dev losses.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.bases.shapes import read_shapes
from luthier.config.load import Project
from luthier.errors import LuthierError
from luthier.jobs.console import duration
from luthier.jobs.plan_data import count_workload
from luthier.plan.machines import GIB
from luthier.plan.money import money
from luthier.plan.predict import predict
from luthier.types import MachineProfile

HEADERS = ("", "planned", "measured", "measured / planned")


def plan_ahead(project: Project, base: Path, prepared: Path, machine: MachineProfile | None) -> dict[str, Any] | None:
    """peak_bytes, total_s and usd of the run as planned; None for a base or a machine that the plan does not know, and
    for an online run: nobody knows how long it will sample.
    """
    if machine is None or project.spec.loss.is_online:
        return None
    try:
        workload = count_workload(project, prepared)
        made = predict(read_shapes(base), project.spec, workload, machine)
    except LuthierError:  # no reason not to train: `luthier plan` says what is wrong
        return None
    return {"peak_bytes": made.memory.peak_bytes, "total_s": made.total_s, "usd": made.usd}


def planned_rows(facts: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """One row a figure, from the facts of a train stage; empty where nothing was planned."""
    planned = facts.get("planned")
    if not planned:
        return []
    took_s = facts["waste"]["wall_s"]
    rows = [
        _row("peak memory", planned["peak_bytes"], facts["peak_bytes"], lambda x: f"{x / GIB:.2f} GiB"),
        _row("time", planned["total_s"], took_s, duration),
        _row("money", planned["usd"], money(took_s, MachineProfile(**facts["machine"])), lambda x: f"{x:.4f} USD"),
    ]
    return [row for row in rows if row]


def planned_line(facts: dict[str, Any]) -> str:
    """The same in one line; '' when nothing was planned."""
    return ", ".join(f"{name} {planned} and took {took}" for name, planned, took, _ in planned_rows(facts))


def _row(name: str, planned: float | None, took: float | None, shown: Any) -> tuple[str, str, str, str] | None:
    if planned is None or took is None:
        return None
    return name, shown(planned), shown(took), f"{took / planned:.2f}" if planned else "-"

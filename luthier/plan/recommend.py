"""Values for the knobs that a project leaves open, from the facts of its data and base and one table of good practice.

The table (`practice.yaml`) holds every number, its reason and its source; here is only how a row of it is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.bases.shapes import Shapes
from luthier.config.project import ProjectSpec
from luthier.config.yaml_file import read_yaml
from luthier.plan.workload import Workload

FILE = Path(__file__).with_name("practice.yaml")
MICRO, WINDOW = "train.micro_batch_tokens", "train.gradient_accumulation_steps"
LONGEST, _SPARE_LENGTH = "train.sequence_len", 2  # rows that were not looked at may be twice as long
_GRAIN = 64  # token budgets are multiples of this


@dataclass(frozen=True)
class Proposal:
    """One knob. key: dotted; now: the project's value; stated: the project sets it itself, so it stays."""

    key: str
    now: Any
    value: Any
    stated: bool
    range: str
    why: str
    source: str

    @property
    def changes(self) -> bool:
        """Whether a project that follows it becomes another one."""
        return not self.stated and self.value != self.now


@dataclass(frozen=True)
class Recommendation:
    """What is proposed, knob by knob in the table's order, and what no knob mends: (advice, source)."""

    proposals: tuple[Proposal, ...]
    advice: tuple[tuple[str, str], ...]


def recommend(spec: ProjectSpec, stated: frozenset[str], workload: Workload, shapes: Shapes) -> Recommendation:
    """From one epoch of `workload` on a base of `shapes`. stated: dotted keys that the project sets itself; later knobs
    are chosen to suit them. Knobs that adapter.method does not have are left out."""
    practice = read_yaml(FILE)[0]
    facts: dict[str, Any] = {
        "trains": spec.adapter.facts.kind,
        "rows": workload.num_rows,
        "answer_tokens": workload.num_trained / workload.num_rows,
        "parameters": shapes.num_parameters,
    }
    chosen: dict[str, Any] = {}
    proposals = []
    for entry in practice["knobs"]:
        row = next(row for row in entry["rows"] if _holds(row, facts))
        if row.get("none"):
            continue
        for key, value in _settings(entry["key"], row, spec, stated, workload, chosen):
            now = value_of(spec, key)
            proposals.append(
                Proposal(key, now, value, key in stated, entry["range"], row["why"], " ".join(entry["source"].split()))
            )
            chosen[key] = now if key in stated else value
        facts["epochs"] = chosen["train.num_epochs"]
        if WINDOW in chosen:
            facts["steps"] = facts["epochs"] * max(1, round(workload.num_tokens / (chosen[MICRO] * chosen[WINDOW])))
    advice = tuple((row["say"], row["source"]) for row in practice["advice"] if _holds(row, facts))
    return Recommendation(tuple(proposals), advice)


def usual_learning_rate(trains: str, num_parameters: int) -> float:
    """What the table proposes for a base of this size. trains: the kind of the method (config/adapter_methods.py)."""
    entry = next(one for one in read_yaml(FILE)[0]["knobs"] if one["key"] == "train.learning_rate")
    facts = {"trains": trains, "parameters": num_parameters}
    return next(row["value"] for row in entry["rows"] if _holds(row, facts))


def _holds(row: dict[str, Any], facts: dict[str, Any]) -> bool:
    return all(
        wanted[0] <= facts[name] < wanted[1] if isinstance(wanted, list) else facts[name] == wanted
        for name, wanted in row.get("when", {}).items()
    )


def _settings(
    key: str,
    row: dict[str, Any],
    spec: ProjectSpec,
    stated: frozenset[str],
    workload: Workload,
    chosen: dict[str, Any],
) -> list[tuple[str, Any]]:
    """The settings that one entry becomes."""
    if key == "rows_per_step":
        settings = _step(row["value"], spec, stated, workload)
        return [(k, v) for k, v in settings.items() if k != LONGEST or v != spec.train.sequence_len]
    return [(key, row["value"] * chosen[row["times"]] if "times" in row else row["value"])]


def _step(rows: int, spec: ProjectSpec, stated: frozenset[str], workload: Workload) -> dict[str, int]:
    """The settings of about `rows` rows a step: one micro-batch up to the project's budget, then several. A budget
    holds at least the longest row that there may be, so that length comes down where it would make the step larger."""
    wanted = rows * workload.num_tokens / workload.num_rows
    micro = spec.train.micro_batch_tokens
    if MICRO not in stated:
        micro = min(max(micro, workload.longest), max(workload.longest, _GRAIN * max(1, round(wanted / _GRAIN))))
        micro = _GRAIN * -(-micro // _GRAIN)
    longest = spec.train.sequence_len
    if LONGEST not in stated and micro < longest:
        longest = min(longest, _GRAIN * -(-_SPARE_LENGTH * workload.longest // _GRAIN))
    micro = max(micro, longest)
    return {LONGEST: longest, MICRO: micro, WINDOW: max(1, round(wanted / micro))}


def value_of(spec: ProjectSpec, key: str) -> Any:
    """The value of a dotted key."""
    value: Any = spec
    for part in key.split("."):
        value = getattr(value, part)
    return value

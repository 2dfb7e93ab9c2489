"""What a run spent without learning from it, as one short table: for the console's summary and for the report.

Definitions: docs/training.md. The figures come from the train stage's facts, so that a reused stage shows them too.
"""

from __future__ import annotations

from typing import Any

from luthier.jobs.console import duration
from luthier.plan.money import money
from luthier.types import MachineProfile

HEADERS = ("spent without learning", "amount", "share", "of")


def waste_rows(facts: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """One row a kind of waste, from the facts of a train stage; empty when it was trained before these were kept."""
    waste = facts.get("waste")
    if not waste:
        return []
    wall_s, num_tokens = waste["wall_s"], facts["tokens"]

    def of_time(name: str, seconds: float, amount: str = "") -> tuple[str, str, str, str]:
        share = f"{seconds / wall_s:.1%}" if wall_s else "-"
        return (name, amount or duration(seconds), share, f"{duration(wall_s)} in all")

    rows = [
        (
            "padding",
            f"{waste['padding_tokens']:,} tokens",
            _share(waste["padding_tokens"], num_tokens),
            "tokens computed",
        ),
        of_time("recompute", waste["recompute_s"]),
        of_time("after the best step", waste["after_best_s"], f"{waste['after_best_steps']} steps"),
        of_time("evaluation", waste["evaluation_s"]),
        of_time("idle", waste["idle_s"]),
    ]
    if waste["shared_tokens"]:
        saved, whole = waste["shared_tokens"], waste["shared_tokens"] + num_tokens - waste["padding_tokens"]
        rows.append(("saved by shared prefixes", f"{saved:,} tokens", _share(saved, whole), "tokens of the rows"))
    machine = facts.get("machine")
    cost = money(wall_s, MachineProfile(**machine)) if machine else None
    if cost is not None:
        lost_s = waste["recompute_s"] + waste["after_best_s"] + waste["evaluation_s"] + waste["idle_s"]
        lost = cost * lost_s / wall_s if wall_s else 0.0
        rows.append(("money, all of the above", f"{lost:.4f} USD", _share(lost, cost), f"{cost:.4f} USD"))
    return rows


def waste_line(facts: dict[str, Any]) -> str:
    """The same in one line; '' when there is nothing to say."""
    return ", ".join(f"{name} {amount} ({share})" for name, amount, share, _ in waste_rows(facts))


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "-"

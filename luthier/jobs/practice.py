"""What a run has found out about its own practice, in words: averages, gradient noise, the gap between rows seen and
not seen."""

from __future__ import annotations

from typing import Any


def practice_lines(facts: dict[str, Any]) -> list[str]:
    """One line each; none for what a run did not look at."""
    return [line for line in (_average(facts.get("average")),) if line]


def _average(average: dict[str, Any] | None) -> str:
    if average is None:
        return ""
    figures = average["figures"]
    name = "loss" if "loss" in figures else "reward"
    outcome = "it is kept" if average["kept"] else "the best checkpoint is better and is kept"
    return (
        f"mean of {len(average['steps'])} checkpoints (steps {', '.join(map(str, average['steps']))}): "
        f"dev {name} {figures[name]:.5f}; {outcome}"
    )

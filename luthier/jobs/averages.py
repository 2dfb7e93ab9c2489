"""What came of train.average_checkpoints, in words."""

from __future__ import annotations

from typing import Any


def average_line(facts: dict[str, Any]) -> str:
    """One line; '' for a run that averaged nothing."""
    average = facts.get("average")
    if average is None:
        return ""
    figures = average["figures"]
    name = "loss" if "loss" in figures else "reward"
    outcome = "it is kept" if average["kept"] else "the best checkpoint is better and is kept"
    return (
        f"mean of {len(average['steps'])} checkpoints (steps {', '.join(map(str, average['steps']))}): "
        f"dev {name} {figures[name]:.5f}; {outcome}"
    )

"""What a run has measured of its own practice, in words: the gradient noise scale, the generalisation gap."""

from __future__ import annotations

from typing import Any

from luthier.config.loss import SEQUENCES

_UNITS = {"turns": "trained tokens", "documents": "trained tokens", "pairs": "pairs", "scored_pairs": "pairs"}
_FAR = 4.0  # a step this many times below or above the noise scale is said to be so


def noise_line(facts: dict[str, Any]) -> str:
    """One line; '' where the gradients did not tell."""
    scale, step = facts.get("noise_scale"), facts.get("units_per_step")
    if scale is None or not step:
        return ""
    unit = _UNITS.get(SEQUENCES[facts["loss"]], "rows")
    line = f"gradient noise scale: {scale:,.0f} {unit}, a step holds {step:,.0f}"
    if step * _FAR < scale:
        return f"{line}: larger steps would be worth their time (train.gradient_accumulation_steps)"
    if step > scale * _FAR:
        return f"{line}: smaller steps would teach about as much each (train.gradient_accumulation_steps)"
    return line


def gap_line(facts: dict[str, Any]) -> str:
    """Of the best step, and of the last one where the gap ended the run; '' for a run that looked at none."""
    records = {record["step"]: record for record in facts["history"] if "gap" in record}
    best = records.get(facts["best_step"])
    if best is None:
        return ""
    line = (
        f"generalisation gap at step {best['step']}: {best['gap']:+.4f} (dev loss {best['loss']:.4f}, "
        f"rows trained on {best['train_loss']:.4f})"
    )
    if facts.get("stopped_by") == "gap":
        line += f"; at step {facts['steps']} it was {records[facts['steps']]['gap']:+.4f}, above train.max_gap: stopped"
    return line

"""The ladder of small runs: from few rows to all, then rank, then epochs, one step at a time, and what it says.

What: `climb` asks for the gain of one rung over another, and stops on an axis where the 95% interval of the next gain
holds 0. A tune that does not beat the base yet may still be too small for any step to show: rows and epochs then go on.
Rank and epochs go on from the largest number of rows that was measured. Why these values: few rows and rank 8 are
cheap, and practice.yaml's ranges end at rank 64 and five epochs. Pure: whoever calls brings the runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from luthier.config.adapter import AdapterSpec
from luthier.config.project import ProjectSpec
from luthier.stats.paired import Comparison
from luthier.stats.power import detectable_effect

Axis = Literal["base", "rows", "rank", "epochs"]
ALPHA = 0.025
"""Of each one-sided bound: together a 95% interval."""
PILOT_ROWS, PILOT_RANK, DEV_ROWS = 1000, 8, 300
RANKS, EPOCHS, SHARES = (16, 32, 64), (2, 4), (4, 2, 1)
MIN_ROWS = 64
"""Training rows below which a quarter of them is a handful of steps."""


@dataclass(frozen=True)
class Rung:
    """One small run. rank: None where the method has none to choose."""

    rows: int
    rank: int | None = None
    epochs: int = 1

    def __str__(self) -> str:
        rank = "" if self.rank is None else f", rank {self.rank}"
        return f"{count(self.rows, 'row')}{rank}, {count(self.epochs, 'epoch')}"


@dataclass(frozen=True)
class Gain:
    """What `upper` has over `lower` on the same dev cases. lower is None for the untuned base."""

    axis: Axis
    lower: Rung | None
    upper: Rung
    found: Comparison

    @property
    def is_shown(self) -> bool:
        """Whether the interval lies above 0."""
        return self.found.low > 0

    def __str__(self) -> str:
        gain, low, high = (100 * value for value in (self.found.delta, self.found.low, self.found.high))
        figures = f"{gain:+.1f} points (95% {low:+.1f} to {high:+.1f})"
        if self.lower is None:
            words = "beats" if self.is_shown else "is worse than" if high < 0 else "is not shown to beat"
            return f"the tune ({self.upper}) {words} the untuned base: {figures}"
        below, above = getattr(self.lower, self.axis), getattr(self.upper, self.axis)
        if self.axis == "rows":
            words = "more rows still help" if self.is_shown else "more rows hurt" if high < 0 else "no gain is shown"
            return f"{words}: {figures} from {below:,} to {above:,} rows ({_rest(self.upper)})"
        better = f"{_named(self.axis, above)} over {_named(self.axis, below)}"
        words = "helps" if self.is_shown else "hurts" if high < 0 else "is not shown to help"
        return f"{better} {words}: {figures}"


def count(number: int, noun: str) -> str:
    """1 row, 2 rows."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _named(axis: Axis, value: int) -> str:
    return f"rank {value}" if axis == "rank" else count(value, "epoch")


def _rest(rung: Rung) -> str:
    return str(rung).split(", ", 1)[1]


def has_rank(adapter: AdapterSpec) -> bool:
    """Whether a smaller adapter.lora_r is a smaller run of the same kind; vera's ranks are of another size."""
    return adapter.facts.kind in ("low-rank", "bottleneck") and adapter.method != "vera"


def first_rung(spec: ProjectSpec, rows: int) -> Rung:
    """The cheapest run on so many rows."""
    return Rung(rows, PILOT_RANK if has_rank(spec.adapter) else None)


def settings_of(spec: ProjectSpec, rung: Rung) -> dict[str, Any]:
    """The keys that make a project's run this rung, data.limit_rows aside. The update keeps its size: alpha follows the
    rank, except where it is stabilised by itself (rsLoRA)."""
    adapter, settings = spec.adapter, {}
    if rung.rank is not None:
        settings["adapter.lora_r"] = rung.rank
        if adapter.facts.kind == "low-rank" and not (adapter.use_rslora or adapter.method == "rslora"):
            settings["adapter.lora_alpha"] = adapter.lora_alpha * rung.rank / adapter.lora_r
    return settings | {"train.num_epochs": rung.epochs}


def climb(
    first: Rung, all_rows: int, measure: Callable[[Axis, Rung, Rung], Gain | None], beats_base: Callable[[Rung], bool]
) -> list[Gain]:
    """Every gain that was asked for, in order. measure: None where the upper rung cannot be run."""
    axes: dict[Axis, Sequence[int]] = {"rows": [all_rows // share for share in SHARES]}
    axes |= {"rank": () if first.rank is None else RANKS, "epochs": EPOCHS}
    gains, at = [], first
    for axis, values in axes.items():
        for value in (value for value in values if value > getattr(first, axis)):
            gain = measure(axis, at, replace(at, **{axis: value}))
            if gain is None:
                break
            gains.append(gain)
            if gain.is_shown or axis == "rows":
                at = gain.upper
            if not gain.is_shown and (axis == "rank" or beats_base(gain.upper)):
                break
    return gains


def top_of(gains: Sequence[Gain]) -> Rung:
    """Where the climb ended; the first gain is the first rung's over the base."""
    return [gain.upper for gain in gains if gain.axis in ("base", "rows") or gain.is_shown][-1]


def changes(spec: ProjectSpec, gains: Sequence[Gain], all_rows: int) -> tuple[list[tuple[str, Any]], list[str]]:
    """(settings to change, words on what stays although the climb ended below it). Rows stay all: epochs over a part of
    them become as many steps over all. A value of the project comes down only where a gain of evaluate.min_effect from
    the next step is excluded."""
    top = top_of(gains)
    epochs = max(1, -(-top.epochs * top.rows // all_rows))
    wanted = settings_of(spec, replace(top, epochs=epochs))
    kept = []
    for axis, keys in _KEYS.items():
        last = next((gain.found for gain in reversed(gains) if gain.axis == axis), None)
        now = _value(spec, keys[0])
        if wanted.get(keys[0], now) < now and (last is None or last.high >= spec.evaluate.min_effect):
            wanted = {key: value for key, value in wanted.items() if key not in keys}
            below = _named(axis, getattr(top, axis))
            why = f"gains up to {100 * last.high:.1f} points over {below} are not excluded" if last else "not measured"
            kept.append(f"{keys[0]} stays {now}: {why}")
    return [(key, value) for key, value in wanted.items() if _value(spec, key) != value], kept


_KEYS: dict[Axis, tuple[str, ...]] = {
    "rank": ("adapter.lora_r", "adapter.lora_alpha"),
    "epochs": ("train.num_epochs",),
}


def _value(spec: ProjectSpec, key: str) -> Any:
    section, leaf = key.split(".")
    return getattr(getattr(spec, section), leaf)


def advice(gains: Sequence[Gain], all_rows: int, *, beats_base: bool) -> list[str]:
    """What to do next, most useful first. beats_base: whether the run in which the climb ended does."""
    rows, said = [gain for gain in gains if gain.axis == "rows"], []
    knobs = [gain for gain in gains if gain.axis in ("rank", "epochs") and gain.is_shown]
    if not beats_base:
        said.append(
            "no run beats the untuned base: luthier lr-probe looks at the rate, luthier mask at what is trained"
        )
    elif rows and rows[-1].is_shown:
        at = "" if not knobs else f" (at {_rest(rows[-1].upper)}: knobs give a part of it with the rows at hand)"
        said.append(f"the curve still rises at all rows: more of them are likely to help, where there is room{at}")
    elif rows:
        said.append("the curve is flat, as far as these dev rows show: more rows like these are not what it lacks")
    if rows and rows[-1].upper.rows < all_rows:
        at = rows[-1].upper.rows
        said.append(f"rank and epochs on {at:,} of {count(all_rows, 'row')}: epochs are proposed for as many steps")
    last = gains[-1].found
    least = 100 * detectable_effect(last.error, alpha=ALPHA)
    said.append(
        f"{count(last.n, 'dev row')}: true gains below about {least:.0f} points mostly stay unseen, and each rung is "
        "one run with one seed; more dev rows (data.split.dev, data.limit_dev_rows) see smaller ones"
    )
    return said

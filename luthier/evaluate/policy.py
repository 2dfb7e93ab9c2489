"""What is asked of a tune: the rules of one evaluation, frozen into the header of samples.jsonl."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from luthier.config.evaluate import EvaluateSpec
from luthier.errors import EvaluateError


@dataclass(frozen=True)
class Policy:
    """looks: this is the m-th look at the test set, so every test runs at alpha / looks. None switches a gate off.

    max_failure_rate: of the format gate; perplexity_margin: tolerated relative increase of bits per byte; gap_margin:
    tolerated nats per token between test and training rows.
    """

    metric: str
    metrics: tuple[str, ...] = ()
    alpha: float = 0.05
    min_effect: float = 0.02
    min_pairs: int = 30
    max_failure_rate: float | None = None
    perplexity_margin: float | None = 0.02
    gap_margin: float | None = None
    require: str | None = None
    looks: int = 1

    @property
    def level(self) -> float:
        """One-sided level of every test of this look."""
        return self.alpha / self.looks

    def as_json(self) -> dict[str, Any]:
        """For the header of samples.jsonl."""
        return {**asdict(self), "metrics": list(self.metrics)}


def policy_of(spec: EvaluateSpec, *, has_schema: bool, looks: int) -> Policy:
    """The policy of a config section; the format gate runs when there is a schema to hold answers against."""
    gates = spec.gates
    return Policy(
        metric=spec.metric,
        metrics=tuple(name for name in dict.fromkeys(spec.metrics) if name != spec.metric),
        alpha=spec.alpha,
        min_effect=spec.min_effect,
        min_pairs=spec.min_pairs,
        max_failure_rate=gates.format.max_failure_rate if gates.format and has_schema else None,
        perplexity_margin=gates.perplexity.margin if gates.perplexity else None,
        gap_margin=gates.generalisation.margin if gates.generalisation else None,
        require=spec.require,
        looks=looks,
    )


def policy_from_json(value: Any) -> Policy:
    """Read back what `as_json` wrote; EvaluateError when it is not a policy."""
    try:
        return Policy(**{**value, "metrics": tuple(value["metrics"])})
    except (TypeError, KeyError) as error:
        raise EvaluateError(f"the header of samples.jsonl holds no policy ({error})", hint="evaluate again") from error

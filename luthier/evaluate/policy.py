"""What is asked of a tune: the rules of one evaluation, frozen into the header of samples.jsonl."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from pydantic import ValidationError

from luthier.config.evaluate import EvaluateSpec
from luthier.errors import EvaluateError

_LIMITS = {"format": "max_failure_rate", "perplexity": "perplexity_margin", "generalisation": "gap_margin"}
_LIMIT_KEYS = {"format": "max_failure_rate"}  # what the gate's section calls it; "margin" in the others


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
    """Read back what `as_json` wrote; EvaluateError when no project file could have asked for it."""
    try:
        keys, looks = [spec.name for spec in fields(Policy)], value["looks"]
        if sorted(value) != sorted(keys) or type(looks) is not int or looks < 1:
            raise ValueError(f"looks {looks!r}, keys {', '.join(map(str, value))}")
        limits = {gate: value[key] for gate, key in _LIMITS.items()}
        gates = {gate: None if x is None else {_LIMIT_KEYS.get(gate, "margin"): x} for gate, x in limits.items()}
        own = {key: value[key] for key in keys if key not in ("looks", *_LIMITS.values())}
        return policy_of(EvaluateSpec.model_validate({**own, "gates": gates}), has_schema=True, looks=looks)
    except (TypeError, KeyError, ValueError) as error:
        told = error.errors()[0] if isinstance(error, ValidationError) else None
        why = f"{'.'.join(map(str, told['loc']))}: {told['msg']}" if told else str(error)
        raise EvaluateError(f"the header of samples.jsonl holds no policy ({why})", hint="evaluate again") from error

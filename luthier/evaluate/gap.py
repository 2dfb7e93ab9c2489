"""Is the tune better on rows that it was trained on? Nats per token of its reference answers, test against training
rows: a wide gap says that it knows rows by heart. Near-duplicates count as one. Advisory: it explains a verdict and
never blocks one, since the task gates judge the test rows already.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from luthier.evaluate.cases import Case
from luthier.evaluate.gate import Gate, Status, missing, rounded
from luthier.evaluate.policy import Policy
from luthier.stats.intervals import difference_interval
from luthier.types import Scorer

ID, METRIC = "generalisation", "nats per answer token"


def reference_nats(scorer: Scorer, cases: Sequence[Case]) -> list[float]:
    """Nats per token of reference answers, given their own prompts: one figure a group, the mean over its cases."""
    groups: dict[str, list[float]] = {}
    for case, scores in zip(cases, scorer.score([(case.prompt, case.reference) for case in cases]), strict=True):
        if scores:
            groups.setdefault(case.group, []).append(-sum(scores) / len(scores))
    return [round(sum(nats) / len(nats), 6) for nats in groups.values()]


def gap_gate(found: Mapping[str, Any] | None, policy: Policy) -> Gate:
    """Test less training rows, with one-sided bounds at the policy's level, against its gap_margin. found: what
    `reference_nats` said of both ("train", "test")."""
    margin = policy.gap_margin or 0.0
    sides = [[x for x in (found or {}).get(name, ()) if isinstance(x, (int, float))] for name in ("train", "test")]
    if min(len(side) for side in sides) < 2 or not all(math.isfinite(x) for side in sides for x in side):
        return missing(ID, "too few training or test answers were scored", metric=METRIC)
    train, test = (np.array(side, float) for side in sides)
    low, high = difference_interval(test, train, confidence=1 - 2 * policy.level)
    status: Status = "PASS" if high <= margin else "FAIL" if low > margin else "INCONCLUSIVE"
    num = min(len(train), len(test))
    reason = f"advisory: test answers cost {test.mean() - train.mean():+.3f} nats a token beside training answers"
    if num < policy.min_pairs:
        status, reason = "INCONCLUSIVE", f"{reason}; {num} groups are fewer than the {policy.min_pairs} any claim needs"
    actions = {
        "PASS": "",
        "FAIL": "more rows, fewer epochs, or adapter.lora_dropout; train.gap_rows shows when it opens",
        "INCONCLUSIVE": "more rows of both would settle it",
    }
    return Gate(
        id=ID,
        status=status,
        reason=f"{reason} (bounds {low:+.3f} to {high:+.3f}, allowed {margin:+.3f})",
        method="Welch, one-sided",
        metric=METRIC,
        figures={"training rows": rounded(train.mean()), "tuned": rounded(test.mean())},
        delta=rounded(test.mean() - train.mean()),
        low=rounded(low),
        high=rounded(high),
        n=num,
        num_groups=num,
        margin=margin,
        next_action=actions[status],
    )

"""The gates: three-valued, fail closed, and monotone.

A gate ends in PASS, FAIL or INCONCLUSIVE, by these rules (level = alpha / looks, all tests one-sided):
- Evidence that is missing (no case, an arm's answer lost, a score that is not a finite number) is a FAIL.
- Fewer than `min_pairs` items are INCONCLUSIVE, whatever they say.
- Superiority (tuned vs prompt, tuned vs base, prompt vs base): PASS if p < level and delta >= min_effect. FAIL only
  with evidence: the upper bound of the effect lies below min_effect, or there were as many independent items as a power
  plan asks for at discordance PLANNED_DISCORDANCE and effect min_effect. Else INCONCLUSIVE.
- Rate (format): PASS if the exact upper bound of the failure rate <= max_failure_rate; FAIL if the lower bound is above
  it; else INCONCLUSIVE.
- Non-inferiority (perplexity): PASS if the upper bound of the relative increase of bits per byte <= margin; FAIL if the
  lower bound is above it; else INCONCLUSIVE.
Monotone: a better answer never turns PASS into less, nor INCONCLUSIVE into FAIL (the plan uses a fixed discordance for
that reason: an observed one would shrink as answers improve). Proven by test for means; macro-F1 and BLEU, which are
no means and use a bootstrap bound, keep the rules but not the proof. Source: research/eval_data.md A2, items 5-12.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from luthier.evaluate.compare import compare_items
from luthier.evaluate.perplexity import Document
from luthier.evaluate.policy import Policy
from luthier.evaluate.samples import Question, Sample, Samples
from luthier.graders.grader import Grader
from luthier.graders.registry import grader
from luthier.stats.intervals import lower_rate, upper_rate
from luthier.stats.paired import Comparison
from luthier.stats.permutation import subset_ratios
from luthier.stats.power import detectable_effect, pairs_for_error, pairs_for_superiority, trials_for_rate

Status = Literal["PASS", "FAIL", "INCONCLUSIVE"]
PLANNED_DISCORDANCE = 0.3
DIGITS = 6


@dataclass(frozen=True)
class Gate:
    """One judged gate. `figures`: what each side reached; delta with one-sided bounds `low`, `high` at the level.

    n items in num_groups groups. margin: what the interval is held against. mde: smallest true effect this run could
    have seen with power .8. n_needed: items that would settle an INCONCLUSIVE. All numbers rounded to DIGITS.
    """

    id: str
    status: Status
    reason: str
    method: str = ""
    metric: str = ""
    figures: dict[str, float | None] = field(default_factory=dict)
    delta: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    n: int = 0
    num_groups: int = 0
    margin: float | None = None
    mde: float | None = None
    n_needed: int | None = None
    next_action: str = ""

    def as_json(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def rounded(value: float | None) -> float | None:
    """To DIGITS places; None for what is not finite."""
    return round(float(value), DIGITS) if value is not None and math.isfinite(value) else None


def significant(p_value: float) -> float:
    """A p value to four significant digits: small ones must not look like zero."""
    return float(f"{p_value:.4g}")


def missing(gate_id: str, why: str, *, metric: str = "") -> Gate:
    """Fail closed."""
    return Gate(gate_id, "FAIL", f"evidence is missing: {why}", metric=metric, next_action="evaluate again")


def _item_problem(samples: dict[str, Sample], questions: Sequence[Question], metric: Grader, arm: str) -> str:
    """Why the scores of one arm cannot be used, or ''."""
    if not questions:
        return "there is no test case"
    for question in questions:
        if question.id not in samples:
            return f"the {arm} arm has no answer to case {question.id[:12]}"
        if not metric.fits(samples[question.id].scores.get(metric.name)):
            return f"the {arm} arm has no finite {metric.name} for case {question.id[:12]}"
    return ""


def superiority_gate(gate_id: str, treated: str, control: str, samples: Samples, policy: Policy) -> Gate:
    """Does arm `treated` beat arm `control` on the test cases by at least min_effect?"""
    questions, metric = samples.asked(), grader(policy.metric)
    sides = {arm: samples.of(arm) for arm in (treated, control)}
    for arm, answers in sides.items():
        if why := _item_problem(answers, questions, metric, arm):
            return missing(gate_id, why, metric=metric.name)
    items = {
        arm: [answers[question.id].scores[metric.name] for question in questions] for arm, answers in sides.items()
    }
    groups = [question.group for question in questions]
    result = compare_items(metric, items[treated], items[control], groups, alpha=policy.level)
    status, reason, n_needed = judge_superiority(result, policy)
    return Gate(
        id=gate_id,
        status=status,
        reason=f"{treated} against {control}: {reason}",
        method=result.method,
        metric=metric.name,
        figures={arm: rounded(metric.figure(items[arm])) for arm in (treated, control)},
        delta=rounded(result.delta),
        low=rounded(result.low),
        high=rounded(result.high),
        p_value=significant(result.p_value),
        n=result.n,
        num_groups=result.num_groups,
        margin=policy.min_effect,
        mde=rounded(detectable_effect(result.error, alpha=policy.level)),
        n_needed=n_needed,
        next_action=_action(
            status, n_needed, "test rows", "better data or more training; the error cases are in the report"
        ),
    )


def judge_superiority(result: Comparison, policy: Policy) -> tuple[Status, str, int | None]:
    """(status, reason, items needed) by the rule in the module's docstring."""
    seen = f"{result.delta:+.1%} on {result.n} items, p = {result.p_value:.2g}"
    aim = max(result.delta if result.delta >= policy.min_effect else 0.0, policy.min_effect, 1e-3)
    n_needed = max(pairs_for_error(result.n, result.error, aim, alpha=policy.level), policy.min_pairs, result.n + 1)
    if result.n < policy.min_pairs:
        return "INCONCLUSIVE", f"{result.n} items are fewer than the {policy.min_pairs} that any claim needs", n_needed
    if result.p_value < policy.level and result.delta >= policy.min_effect:
        return "PASS", f"better by {seen}", None
    if result.high < policy.min_effect:
        return "FAIL", f"{seen}: the gain is below {policy.min_effect:.1%} (upper bound {result.high:+.1%})", None
    planned = math.inf
    if policy.min_effect > 0:
        planned = pairs_for_superiority(policy.min_effect, PLANNED_DISCORDANCE, alpha=policy.level)
    if result.num_groups >= planned:
        return "FAIL", f"{seen}: not shown with {result.num_groups} independent items, {planned} were planned", None
    return "INCONCLUSIVE", f"{seen}: neither a gain of {policy.min_effect:.1%} nor its absence is shown", n_needed


def format_gate(gate_id: str, arm: str, samples: Samples, policy: Policy, *, need_unlabelled: bool = True) -> Gate:
    """Do the arm's raw answers parse and satisfy the schema, over distinct prompts of test and unlabelled cases?

    need_unlabelled: every unlabelled case must have an answer; else those that are missing are left out.
    """
    splits = ("test", "unlabelled")
    answers = {(split, sample.id): sample for split in splits for sample in samples.of(arm, split).values()}
    asked = [(split, q.id) for split in splits for q in samples.asked(split) if need_unlabelled or split == "test"]
    if not asked:
        return missing(gate_id, "there is no case")
    for key in asked:
        if key not in answers:
            return missing(gate_id, f"the {arm} arm has no answer to case {key[1][:12]}")
    verdicts: dict[str, bool] = {}
    for sample in answers.values():
        if sample.problem is None:
            return missing(gate_id, f"the format of case {sample.id[:12]} was not checked")
        verdicts[sample.prompt] = verdicts.get(sample.prompt, True) and sample.problem == ""
    n, limit = len(verdicts), policy.max_failure_rate or 0.0
    failures = n - sum(verdicts.values())
    low, high = lower_rate(failures, n, alpha=policy.level), upper_rate(failures, n, alpha=policy.level)
    seen = f"{failures} of {n} distinct prompts got an answer that does not fit the schema"
    status: Status = "PASS" if high <= limit else "FAIL" if low > limit else "INCONCLUSIVE"
    n_needed = None
    if n < policy.min_pairs:
        status, seen = "INCONCLUSIVE", f"{n} prompts are fewer than the {policy.min_pairs} that any claim needs"
    if status == "INCONCLUSIVE":
        n_needed = max(trials_for_rate(limit, num_failures=failures, alpha=policy.level), n + 1)
    return Gate(
        id=gate_id,
        status=status,
        reason=f"{arm}: {seen} (upper bound {high:.2%}, allowed {limit:.2%})",
        method="Clopper-Pearson, one-sided",
        metric="format failure rate",
        figures={arm: rounded(failures / n)},
        delta=rounded(failures / n),
        low=rounded(low),
        high=rounded(high),
        n=n,
        num_groups=n,
        margin=limit,
        n_needed=n_needed,
        next_action=_action(
            status, n_needed, "distinct prompts (data.unlabelled)", "look at the broken answers in the report"
        ),
    )


def perplexity_gate(gate_id: str, documents: Sequence[Document], policy: Policy) -> Gate:
    """Did bits per byte on general text rise by no more than the margin, tuned against base, paired by document?"""
    margin = policy.perplexity_margin or 0.0
    if not documents:
        return missing(gate_id, "no general text was scored", metric="bits per byte")
    for document in documents:
        nats = (document.base_nats, document.tuned_nats)
        if document.num_bytes <= 0 or not all(isinstance(x, (int, float)) and math.isfinite(x) and x > 0 for x in nats):
            return missing(gate_id, f"{document.id} has no finite score", metric="bits per byte")
    base, tuned = (np.array([getattr(d, side) for d in documents], float) for side in ("base_nats", "tuned_nats"))
    num_bits = math.log(2) * sum(document.num_bytes for document in documents)
    null = subset_ratios(tuned - base, base)
    low, high, n = null.lower(policy.level), null.upper(policy.level), len(documents)
    status: Status = "PASS" if high <= margin else "FAIL" if low > margin else "INCONCLUSIVE"
    change = float(tuned.sum() / base.sum() - 1)
    reason = f"bits per byte changed by {change:+.2%} (upper bound {high:+.2%}, allowed {margin:+.2%})"
    if n < policy.min_pairs:
        status, reason = "INCONCLUSIVE", f"{n} texts are fewer than the {policy.min_pairs} that any claim needs"
    wide = status == "INCONCLUSIVE"
    spread = (high - low) / max(abs(margin - change), 1e-4) if math.isfinite(high - low) else 2.0
    n_needed = max(math.ceil(n * min(spread, 10.0) ** 2), policy.min_pairs, n + 1) if wide else None
    return Gate(
        id=gate_id,
        status=status,
        reason=reason,
        method=f"sign flips over documents ({'exact' if null.exact else null.num_draws}), inverted",
        metric="bits per byte",
        figures={"base": rounded(base.sum() / num_bits), "tuned": rounded(tuned.sum() / num_bits)},
        delta=rounded(change),
        low=rounded(low),
        high=rounded(high),
        p_value=significant(null.p_below(margin)),
        n=n,
        num_groups=n,
        margin=margin,
        n_needed=n_needed,
        next_action=_action(status, n_needed, "general texts", "lower the learning rate, or train fewer epochs"),
    )


def _action(status: Status, n_needed: int | None, what: str, otherwise: str) -> str:
    if status == "INCONCLUSIVE":
        return f"about {n_needed:,} {what} would settle it"
    return otherwise if status == "FAIL" else ""

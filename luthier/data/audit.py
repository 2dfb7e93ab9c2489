"""What the training rows are like as a whole: groups, balance, diversity, and how many there are for the task.

Fills `summary.checks` and `summary.notices`; changes no row, except where data.checks.counterfactual says drop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from luthier.config.data_checks import ChecksSpec
from luthier.config.data_style import StyleSpec
from luthier.data.balance import balance_warnings, diversity, label_balance, volume_advice
from luthier.data.checks import sentences
from luthier.data.disparity import disparity_sentences, measure
from luthier.data.items import Item
from luthier.data.quarantine import Quarantine
from luthier.data.spill import Items, Mapped
from luthier.data.style import style_misses, style_profile
from luthier.data.summary import PreparedSummary
from luthier.errors import DataError

NOT_COUNTERFACTUAL = "equal but for the group, with another answer"
MAX_RATES = 20


def compare_groups(items: Items, spec: ChecksSpec, quarantine: Quarantine, summary: PreparedSummary) -> Items:
    """Measures whether answers depend on the group; the items without the conflicting rows where the policy is drop."""
    if not spec.group_terms and not spec.group_column:
        return items
    result, conflicting = measure(items, spec)
    if not result.rows_by_group:
        summary.warnings.append("data.checks: no row names a group (group_terms, group_column)")
    said = disparity_sentences(result, spec.max_rate_gap)
    if conflicting and spec.counterfactual == "error":
        raise DataError(said[0], hint="mend the labels, or set data.checks.counterfactual to report or drop")
    summary.warnings += said
    summary.checks["groups"] = asdict(result) | {"rates": result.rates[:MAX_RATES]}
    if spec.counterfactual != "drop":
        return items
    gone = {item.record.place for item in conflicting}
    for item in conflicting:
        quarantine.add(item.record, NOT_COUNTERFACTUAL, is_fault=False)
    return items.take(np.array([item.record.place not in gone for item in items], dtype=bool))


def audit(train: Sequence[Item], spec: ChecksSpec, summary: PreparedSummary) -> None:
    """Balance of the answers, diversity and topics of the prompts, and the advice on their number."""
    rows = Mapped(train, lambda item: item.row)
    balance = label_balance(row.answer for row in rows if row.answer)
    summary.checks["balance"] = balance
    if spec.diversity:
        summary.checks["diversity"] = diversity(rows)
    advice = volume_advice(len(rows), spec.task_kind)
    found = sentences(summary.checks["findings"])
    summary.notices += [*found, *balance_warnings(balance), *([advice] if advice else [])]


def check_style(train: Items, wish: StyleSpec, summary: PreparedSummary) -> None:
    """Puts the style of the answers beside the wished one; DataError when it is another and the policy is refuse."""
    answered = train.take(np.array([bool(item.row.answer) for item in train], dtype=bool))
    profile = style_profile(Mapped(answered, lambda item: item.row.answer), wish)
    summary.checks["style"] = profile
    said = style_misses(profile, wish)
    if said and wish.policy == "refuse":
        raise DataError(said[0], hint="mend the answers, or set data.style.policy to warn")
    summary.warnings += said

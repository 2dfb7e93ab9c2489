"""Whether the answers depend on a group that they should not depend on.

What: (1) counterfactual sets: rows that are equal but for a word that names the group (Emily / Lakisha), with different
answers; (2) the rate of every answer by group, and the largest gap; (3) proxies: words that give the group away and go
with an answer. Why before duplicates are removed: such rows are near-duplicates of each other, and the second one would
be gone. A gap is a question to the data, not a proof of wrong: with few rows it is chance, so it comes with a p-value.
Sources: M. Kusner et al., "Counterfactual fairness" (2017); M. Bertrand and S. Mullainathan (2004) for names; Fisher's
exact test.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from scipy.special import gammaln

from luthier.config.data_checks import ChecksSpec
from luthier.data.balance import answer_fields, values_of
from luthier.data.items import Item, prompt_text
from luthier.data.templates import as_text
from luthier.text.normalise import normalise
from luthier.text.terms import term_pattern

MAX_P = 0.01
MIN_PROXY_ROWS = 5
MIN_PROXY_LIFT = 3.0
NUM_PROXIES = 12
_WORD = re.compile(r"[^\W_]{2,}")


@dataclass
class Disparity:
    """num_sets: prompts that stand for several groups; conflicts: places of the sets whose answers differ; rates: per
    answer, the rate by group with gap and p; proxies: words by lift."""

    rows_by_group: dict[str, int] = field(default_factory=dict)
    num_sets: int = 0
    conflicts: list[list[dict[str, str]]] = field(default_factory=list)
    rates: list[dict] = field(default_factory=list)
    proxies: list[dict] = field(default_factory=list)


@dataclass(frozen=True)
class _Member:
    item: Item
    group: str
    key: str


def measure(items: Sequence[Item], spec: ChecksSpec) -> tuple[Disparity, list[Item]]:
    """(what was found, the rows of the conflicting sets). Items whose group is unknown or mixed are left out."""
    members = _members(items, spec)
    result = Disparity(dict(sorted(Counter(member.group for member in members).items())))
    by_key: dict[str, list[_Member]] = defaultdict(list)
    for member in members:
        by_key[member.key].append(member)
    conflicting: list[Item] = []
    for some in by_key.values():
        if len({member.group for member in some}) < 2:
            continue
        result.num_sets += 1
        if _differ(some):
            result.conflicts.append([{"place": m.item.record.place, "group": m.group} for m in some])
            conflicting += [member.item for member in some]
    if len(result.rows_by_group) > 1:
        result.rates = _rates(members)
        result.proxies = _proxies(members)
    return result, conflicting


def _members(items: Sequence[Item], spec: ChecksSpec) -> list[_Member]:
    patterns = {group: term_pattern(terms) for group, terms in sorted(spec.group_terms.items()) if terms}
    members = []
    for item in items:
        text = prompt_text(item.row)
        if spec.group_column:
            group = as_text(item.row.columns.get(spec.group_column)).strip()
        else:
            named = [group for group, pattern in patterns.items() if pattern.search(text)]
            group = named[0] if len(named) == 1 else ""
            text = patterns[group].sub("\x00", text) if group else text
        if group:
            members.append(_Member(item, group, normalise(text)))
    return members


def _differ(some: Sequence[_Member]) -> bool:
    """Whether two groups have different answers (two rows of one group may: that is a conflict of another kind)."""
    answers: dict[str, set[str]] = defaultdict(set)
    for member in some:
        answers[member.group].add(normalise(member.item.row.answer))
    return any(a != b for a, b in combinations(answers.values(), 2))


def _rates(members: Sequence[_Member]) -> list[dict]:
    """Per field and value: rate by group, the gap between the extremes and its p-value (Fisher, times the number of
    comparisons), the largest gap first."""
    fields = answer_fields([member.item.row.answer for member in members])
    sizes = Counter(member.group for member in members)
    counts: Counter[tuple[str, str, str]] = Counter()
    for member in members:
        for name, value in values_of(member.item.row.answer).items():
            counts[name, value, member.group] += 1
    num_pairs = len(sizes) * (len(sizes) - 1) // 2
    num_tests = max(sum(len(values) for values in fields.values()), 1) * num_pairs
    records = []
    for name, values in fields.items():
        for value in values:
            rate = {group: counts[name, value, group] / size for group, size in sizes.items()}
            low, high = min(sizes, key=lambda g: rate[g]), max(sizes, key=lambda g: rate[g])
            table = [[counts[name, value, g], sizes[g] - counts[name, value, g]] for g in (low, high)]
            p = min(fisher_p(table) * num_tests, 1.0)
            gap = round(rate[high] - rate[low], 4)
            rates = {group: round(share, 4) for group, share in rate.items()}
            records.append({"field": name, "value": value, "rates": rates, "gap": gap, "p": p})
    return sorted(records, key=lambda one: (-one["gap"], one["field"], one["value"]))


def _proxies(members: Sequence[_Member]) -> list[dict]:
    """Words at least three times as frequent in one group's rows as in the others' (p < 0.01 after correction)."""
    sizes = Counter(member.group for member in members)
    holders: Counter[tuple[str, str]] = Counter()
    for member in members:
        holders.update((word, member.group) for word in set(_WORD.findall(member.key)))
    words = Counter({word: 0 for word, _ in holders})
    for (word, _), num in holders.items():
        words[word] += num
    records = []
    for (word, group), num in holders.items():
        if words[word] < MIN_PROXY_ROWS:
            continue
        others, num_others = len(members) - sizes[group], words[word] - num
        lift = (num / sizes[group]) / ((num_others + 0.5) / (others + 1))
        if lift < MIN_PROXY_LIFT:
            continue
        p = fisher_p([[num, sizes[group] - num], [num_others, others - num_others]])
        if p * len(words) * len(sizes) < MAX_P:
            records.append({"word": word, "group": group, "rows": num, "lift": round(lift, 2)})
    return sorted(records, key=lambda one: (-one["lift"], one["word"]))[:NUM_PROXIES]


def fisher_p(table: list[list[int]]) -> float:
    """Two-sided p-value of a 2 x 2 table (Fisher's exact test): the chance, with these margins, of a table as unlikely
    as this one. Not scipy's, because scipy.stats takes longer to import than all checks take on a thousand rows."""
    (a, b), (c, d) = table
    first, column, num = a + b, a + c, a + b + c + d
    cells_K = np.arange(max(0, first + column - num), min(first, column) + 1)
    tables_4K = np.stack([cells_K, first - cells_K, column - cells_K, num - first - column + cells_K])
    logs_K = -gammaln(tables_4K + 1.0).sum(axis=0)
    chances_K = np.exp(logs_K - logs_K.max())
    as_unlikely_K = chances_K <= chances_K[cells_K == a] * (1 + 1e-7)
    return float(chances_K[as_unlikely_K].sum() / chances_K.sum())


def disparity_sentences(result: Disparity, max_gap: float) -> list[str]:
    """What should be looked at, one sentence each."""
    said = []
    if result.conflicts:
        said.append(
            f"{len(result.conflicts)} of {result.num_sets} sets of rows that differ only by group have different "
            f"answers (first at {result.conflicts[0][0]['place']})"
        )
    for one in result.rates:
        if one["gap"] >= max_gap and one["p"] < MAX_P:
            rates = one["rates"]
            low, high = min(rates, key=rates.get), max(rates, key=rates.get)
            said.append(
                f"{one['field']} {one['value'][:40]!r}: {rates[high]:.0%} in group {high}, {rates[low]:.0%} in group "
                f"{low} (p = {one['p']:.1g})"
            )
            break
    return said

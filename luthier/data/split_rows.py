"""The split as a step of the preparation: rows dealt by their rule, what is odd about it said, frozen rows kept out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from luthier.config.data import SplitSpec
from luthier.data import assign
from luthier.data.dedupe import LIKENESS
from luthier.data.eval_guard import FROZEN, find_frozen, read_frozen
from luthier.data.items import Item
from luthier.data.lengths import Encoded
from luthier.data.run_state import Run, refuse_too_many_faults
from luthier.data.split import Assign, deal, proof
from luthier.errors import DataError

GIANT_GROUP_SHARE = 0.05
NO_DEV = "give dev a share (0.1), or set data.allow_no_dev: true; the verdict is then forfeited"


def split_rows(run: Run, usable: list[Encoded], test: list[Encoded]) -> dict[str, list[Encoded]]:
    spec, wanted = run.spec, run.spec.split
    shares = {"train": wanted.train, "dev": wanted.dev, "test": wanted.test}
    if test:
        both = wanted.train + wanted.dev
        shares = {"train": wanted.train / both, "dev": wanted.dev / both}
    usable = _readable(run, usable)
    items = [one.item for one in usable]
    how = {"threshold": spec.leak_threshold, "seed": spec.split_seed}
    dealt = deal(items, shares, **how, semantic=spec.semantic_threshold, assign=_rule(wanted, shares))
    run.summary.proof = proof(items, dealt, shares, **how)
    splits: dict[str, list[Encoded]] = {"train": [], "dev": [], "test": _grouped(test, how)}
    for one, name, root in zip(usable, dealt.split_of, dealt.group_of, strict=True):
        if wanted.by == "column" and assign.parse_split(one.item.row.columns[str(wanted.column)]) != name:
            detail = f"the column says otherwise, but it is in one group with a row of {name}"
            run.quarantine.add(one.item.record, detail, reason=f"in one group with a row of {name}", is_fault=False)
        else:
            splits[name].append(with_group(one, items[root].row.id))
    _describe_rule(run, items, dealt.split_of)
    run.summary.proof["leaks_into_test_files_removed"] = len(run.summary.leaks)
    largest = run.summary.proof["largest_group_rows"]
    if largest > max(GIANT_GROUP_SHARE * len(items), 5):
        run.summary.warnings.append(
            f"one group holds {largest:,} of {len(items):,} rows: many rows resemble one another, or data.group_by has "
            "few values; the shares of the splits may come out uneven"
        )
    if not splits["train"]:
        raise DataError(f"{len(items)} usable rows make no training split{_repeats(run)}", hint="add rows")
    if not splits["dev"] and not spec.allow_no_dev:
        num_groups = run.summary.proof["num_groups"]
        raise DataError(
            f"{len(items)} usable rows in {num_groups} groups make no dev split{_repeats(run)}",
            hint=f"add rows; or {NO_DEV}",
        )
    if shares.get("test") and not splits["test"]:
        run.summary.warnings.append("no row came to the test split; nothing can be judged on it")
    return splits


def _readable(run: Run, usable: list[Encoded]) -> list[Encoded]:
    """The rows whose split.column can be read; all, where the hash deals."""
    wanted = run.spec.split
    if wanted.column is None:
        return usable
    items = assign.readable([one.item for one in usable], wanted.by, wanted.column, run.quarantine)
    kept = {item.record.place for item in items}
    refuse_too_many_faults(run)
    return [one for one in usable if one.item.record.place in kept]


def _rule(wanted: SplitSpec, shares: dict[str, float]) -> Assign | None:
    if wanted.column is None:
        return None
    column = wanted.column
    if wanted.by == "time":
        return lambda items, groups: assign.by_time(items, groups, shares, column)
    return lambda items, groups: assign.by_column(items, groups, column)


def _describe_rule(run: Run, items: Sequence[Item], split_of: Sequence[str]) -> None:
    wanted = run.spec.split
    run.summary.proof["assigned_by"] = wanted.by if wanted.column is None else f"{wanted.by} {wanted.column!r}"
    if wanted.by == "column":
        run.summary.proof["shares_wanted"] = {}
    if wanted.by == "time":
        run.summary.proof["time_ranges"] = assign.time_ranges(items, split_of, str(wanted.column))


def _repeats(run: Run) -> str:
    """How many rows say again what an earlier row says, in words; '' when none does."""
    counts = run.quarantine.by_reason()
    num = sum(count for reason, count in counts.items() if reason in LIKENESS)
    return f" ({num:,} of {run.summary.rows_read:,} rows repeat an earlier one and were set aside)" if num else ""


def _grouped(encoded: list[Encoded], how: dict) -> list[Encoded]:
    """Rows of test files with their group ids: the clusters of the statistics."""
    items = [one.item for one in encoded]
    roots = deal(items, {"test": 1.0}, **how).group_of
    return [with_group(one, items[root].row.id) for one, root in zip(encoded, roots, strict=True)]


def with_group(one: Encoded, group: str) -> Encoded:
    return replace(one, item=replace(one.item, row=replace(one.item.row, group=group)))


def limit_rows(run: Run, train: list[Encoded]) -> list[Encoded]:
    """At most data.limit_rows training rows, chosen by hash, in file order."""
    limit = run.spec.limit_rows
    if limit is None or len(train) <= limit:
        return train
    rank: Callable[[Encoded], str] = lambda one: hashlib.sha256(  # noqa: E731
        f"{run.spec.split_seed}:{one.item.row.id}".encode()
    ).hexdigest()
    chosen = {one.item.row.id for one in sorted(train, key=rank)[:limit]}
    for one in train:
        if one.item.row.id not in chosen:
            run.quarantine.add(one.item.record, "left out by data.limit_rows", is_fault=False)
    return [one for one in train if one.item.row.id in chosen]


def keep_frozen_out(run: Run, splits: dict[str, list[Encoded]]) -> dict[str, list[Encoded]]:
    """Train and dev without the rows of frozen evaluation sets, and without rows like them."""
    frozen = read_frozen(run.base_dir / run.spec.frozen)
    rows = [one.item.row for name in ("train", "dev") for one in splits[name]]
    found = find_frozen(rows, frozen, run.spec.leak_threshold)
    if found and run.spec.on_frozen == "error":
        first = next(row for row in rows if row.id in found)
        raise DataError(
            f"{len(found)} rows would go to train or dev that are {FROZEN} (first: {first.source}:{first.line})",
            hint="data.on_frozen: quarantine sets them aside by name",
        )
    for name in ("train", "dev"):
        for one in splits[name]:
            if one.item.row.id in found:
                run.quarantine.add(one.item.record, found[one.item.row.id], reason=FROZEN, is_fault=False)
        splits[name] = [one for one in splits[name] if one.item.row.id not in found]
    if not splits["train"]:
        raise DataError("every training row is frozen for evaluation", hint="add rows that no frozen set holds")
    run.summary.proof["frozen_sets"] = {name: len(rows) for name, rows in frozen.items()}
    run.summary.proof["rows"] = {name: len(rows) for name, rows in splits.items()}
    return splits

"""The split as a step of the preparation: rows dealt by their rule, what is odd about it said, frozen rows kept out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from luthier.config.data import SplitSpec
from luthier.data import assign
from luthier.data.dedupe import LIKENESS
from luthier.data.eval_guard import FROZEN, find_frozen, read_frozen
from luthier.data.items import Item
from luthier.data.run_state import Run, refuse_too_many_faults, worst
from luthier.data.spill import EncodedItems, Items
from luthier.data.split import SPLITS, Assign, deal, proof
from luthier.errors import DataError

GIANT_GROUP_SHARE = 0.05
NO_DEV = "give dev a share (0.1), or set data.allow_no_dev: true; the verdict is then forfeited"


def split_rows(run: Run, usable: EncodedItems, test: EncodedItems) -> dict[str, EncodedItems]:
    """split -> its rows, with their groups noted. test: the rows of test files."""
    spec, wanted = run.spec, run.spec.split
    shares = {"train": wanted.train, "dev": wanted.dev, "test": wanted.test}
    if len(test):
        both = wanted.train + wanted.dev
        shares = {"train": wanted.train / both, "dev": wanted.dev / both}
    usable = _readable(run, usable)
    items = usable.items
    how = {"threshold": spec.leak_threshold, "seed": spec.split_seed}
    dealt = deal(items, shares, **how, semantic=spec.semantic_threshold, assign=_rule(wanted, shares))
    run.summary.proof = proof(dealt, shares, **how)
    usable.set_groups(dealt.ids[dealt.group_of])
    if len(test):
        grouped = deal(test.items, {"test": 1.0}, **how)  # the clusters of the statistics
        test.set_groups(grouped.ids[grouped.group_of])
    split_N = dealt.numbers
    if wanted.by == "column":
        split_N = _without_contradicted(run, items, split_N)
    splits = {name: usable.take(split_N == place) for place, name in enumerate(SPLITS)}
    splits["test"] += test
    _describe_rule(run, items, dealt.split_of)
    run.summary.proof["leaks_into_test_files_removed"] = len(run.summary.leaks)
    largest = run.summary.proof["largest_group_rows"]
    if largest > max(GIANT_GROUP_SHARE * len(items), 5):
        run.summary.warnings.append(
            f"one group holds {largest:,} of {len(items):,} rows: many rows resemble one another, or data.group_by has "
            "few values; the shares of the splits may come out uneven"
        )
    if not len(splits["train"]):
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


def _readable(run: Run, usable: EncodedItems) -> EncodedItems:
    """The rows whose split.column can be read; all, where the hash deals."""
    wanted = run.spec.split
    if wanted.column is None:
        return usable
    is_readable = assign.readable(usable.items, wanted.by, wanted.column, run.quarantine)
    refuse_too_many_faults(run)
    if len(usable) and not is_readable.any():
        raise DataError(
            f"column {wanted.column!r} of data.split.column tells nothing in any of {len(usable):,} rows: "
            f"{worst(run.quarantine)}",
            hint="name a column it has" if wanted.by == "column" else "name a column of ISO dates, or of seconds",
        )
    return usable.take(is_readable)


def _without_contradicted(run: Run, items: Items, split_N: np.ndarray) -> np.ndarray:
    """The splits by their places, -1 for the rows whose column says otherwise, which go to the quarantine."""
    found = split_N.copy()
    for index, item in enumerate(items):
        name = SPLITS[split_N[index]]
        if assign.parse_split(item.row.columns[str(run.spec.split.column)]) != name:
            detail = f"the column says otherwise, but it is in one group with a row of {name}"
            run.quarantine.add(item.record, detail, reason=f"in one group with a row of {name}", is_fault=False)
            found[index] = -1
    return found


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


def limit_rows(run: Run, splits: dict[str, EncodedItems]) -> dict[str, EncodedItems]:
    """The splits with at most data.limit_rows training and data.limit_dev_rows dev rows, in file order. Groups come in
    an order that only data.split_seed chooses, so that a smaller limit takes part of what a larger one takes, and at
    most one group is cut."""
    limits = {"train": ("limit_rows", run.spec.limit_rows), "dev": ("limit_dev_rows", run.spec.limit_dev_rows)}
    return splits | {name: _limited(run, splits[name], *limit) for name, limit in limits.items()}


def _limited(run: Run, rows: EncodedItems, key: str, limit: int | None) -> EncodedItems:
    if limit is None or len(rows) <= limit:
        return rows
    store = rows.store
    ids, groups = (np.array(of_all, dtype=np.uint64)[rows.rows].tolist() for of_all in (store.ids, store.groups))
    rank = [(_draw(run, group), _draw(run, number)) for group, number in zip(groups, ids, strict=True)]
    is_chosen = np.zeros(len(rows), dtype=bool)
    is_chosen[sorted(range(len(ids)), key=rank.__getitem__)[:limit]] = True
    for item in rows.take(~is_chosen).items:
        run.quarantine.add(item.record, f"left out by data.{key}", is_fault=False)
    return rows.take(is_chosen)


def _draw(run: Run, number: int) -> bytes:
    return hashlib.sha256(f"{run.spec.split_seed}:{number:016x}".encode()).digest()


def keep_frozen_out(run: Run, splits: dict[str, EncodedItems]) -> dict[str, EncodedItems]:
    """Train and dev without the rows of frozen evaluation sets, and without rows like them."""
    frozen = read_frozen(run.base_dir / run.spec.frozen)
    items = (splits["train"] + splits["dev"]).items
    found = find_frozen(items, frozen, run.spec.leak_threshold)
    if found and run.spec.on_frozen == "error":
        first = items[min(found)].record
        raise DataError(
            f"{len(found)} rows would go to train or dev that are {FROZEN} (first: {first.place})",
            hint="data.on_frozen: quarantine sets them aside by name",
        )
    for index, detail in found.items():
        run.quarantine.add(items[index].record, detail, reason=FROZEN, is_fault=False)
    for name in ("train", "dev"):
        gone = items.rows[sorted(found)] if found else items.rows[:0]
        splits[name] = splits[name].take(~np.isin(splits[name].rows, gone))
    if not len(splits["train"]):
        raise DataError("every training row is frozen for evaluation", hint="add rows that no frozen set holds")
    run.summary.proof["frozen_sets"] = {name: len(rows) for name, rows in frozen.items()}
    run.summary.proof["rows"] = {name: len(rows) for name, rows in splits.items()}
    return splits

"""Raw files in, rows ready for training and judging out: the guided tour of the room.

read -> map -> clean -> deduplicate -> remove leaks into the test set -> tokenise and hold against sequence_len ->
group and split, with proof -> write. Every row that is read ends in a split or in quarantine.jsonl, per file; that law
is checked before anything is written. All rows are held in memory (some kB each); files are streamed.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from luthier.config.data import DataSpec
from luthier.data.dedupe import Deduped, drop_duplicates
from luthier.data.items import Item, prompt_key
from luthier.data.lengths import Codec, Encoded, encode_all, fit_lengths, length_stats
from luthier.data.load import Loader
from luthier.data.quarantine import Quarantine
from luthier.data.report import LIKENESS, data_report
from luthier.data.sources import Source, check_disjoint, find_sources
from luthier.data.split import deal, leaks_between, proof
from luthier.data.stored import row_lines, write_encoded
from luthier.data.summary import PreparedSummary
from luthier.errors import ConfigError, DataError
from luthier.types import Progress

GIANT_GROUP_SHARE = 0.05
NUM_EXAMPLES = 3


@dataclass(frozen=True)
class _Run:
    """What every step of one run needs."""

    spec: DataSpec
    base_dir: Path
    quarantine: Quarantine
    summary: PreparedSummary
    cleaned: Counter[str]


def prepare(
    spec: DataSpec,
    *,
    codec: Codec,
    sequence_len: int,
    out: Path,
    base_dir: Path,
    progress: Progress | None = None,
) -> PreparedSummary:
    """Prepares the files of `spec` (paths relative to `base_dir`) into the folder `out`, which must exist.

    Writes {train,dev,test,unlabelled}.jsonl, tokens-{train,dev}.*.npy, quarantine.jsonl, summary.json, report.html.
    `progress` counts tokenised rows. Raises DataError or ConfigError with the next move.
    """
    _check(spec)
    run = _Run(spec, base_dir, Quarantine(), PreparedSummary(sequence_len), Counter())
    train, test, unlabelled = _load(run)
    train, test = _deduplicate(run, train), _deduplicate(run, test)
    train = _remove_leaks(run, train, test)
    encoded = encode_all([*train, *test], codec, run.quarantine, progress)
    names = {item.record.place for item in test}
    encoded_test = [one for one in encoded if one.item.record.place in names]
    usable = [one for one in encoded if one.item.record.place not in names]
    usable = fit_lengths(usable, sequence_len, spec.over_length, run.quarantine)
    _refuse_too_many_faults(run)
    splits = _split(run, usable, encoded_test)
    splits["train"] = _limit(run, splits["train"])
    rest = _unlabelled(run, unlabelled, splits)
    _finish(run, splits, rest)
    _write(run, splits, rest, out)
    return run.summary


def _check(spec: DataSpec) -> None:
    for name in ("leak_threshold", "near_duplicate_threshold"):
        if getattr(spec, name) <= 0:
            raise ConfigError(f"data.{name} is 0: then every row would equal every other", hint="use a value above 0")
    if spec.split.train <= 0:
        raise DataError("data.split.train is 0: there would be nothing to train on", hint="give train a share")
    if spec.split.dev <= 0 and not spec.allow_no_dev:
        raise DataError("data.split.dev is 0: without a dev split nothing can be chosen honestly", hint=_NO_DEV)


_NO_DEV = "give dev a share (0.1), or set data.allow_no_dev: true; the verdict is then forfeited"


_ONE_ANSWER = "the tune can learn nothing else (are the rows of the other classes missing?)"


def _load(run: _Run) -> tuple[list[Item], list[Item], list[Item]]:
    spec = run.spec
    train = find_sources(spec.train, "train", run.base_dir, allow_hub=spec.allow_hub)
    test = find_sources(spec.test, "test", run.base_dir, allow_hub=spec.allow_hub)
    unlabelled = find_sources(spec.unlabelled, "unlabelled", run.base_dir, allow_hub=spec.allow_hub)
    check_disjoint(train, test, unlabelled)
    loaded = _load_role(run, train), _load_role(run, test), _load_role(run, unlabelled, needs_answer=False)
    if not loaded[0]:
        raise DataError(f"no usable row in {len(train)} training file(s): {_worst(run.quarantine)}", hint=_MEND)
    if test and not loaded[1]:
        raise DataError(f"no usable row in {len(test)} test file(s): {_worst(run.quarantine)}", hint=_MEND)
    return loaded


_MEND = "mend the files, or say how to read them (data.format, data.prompt, data.completion)"


def _load_role(run: _Run, sources: Sequence[Source], *, needs_answer: bool = True) -> list[Item]:
    loader = Loader(run.spec, run.base_dir, run.quarantine, needs_answer=needs_answer)
    items: list[Item] = []
    for source in sources:
        found, report = loader.load(source)
        items += found
        run.summary.files.append(report)
        run.summary.warnings += report.warnings
    run.cleaned.update(loader.counts)
    return items


def _deduplicate(run: _Run, items: list[Item]) -> list[Item]:
    result: Deduped = drop_duplicates(items, run.spec.near_duplicate_threshold)
    for duplicate in result.dropped:
        run.quarantine.add(duplicate.item.record, duplicate.detail, reason=duplicate.kind, is_fault=False)
    run.summary.conflicts += [{"first": a.record.place, "other": b.record.place} for a, b in result.conflicts]
    return result.kept


def _remove_leaks(run: _Run, train: list[Item], test: list[Item]) -> list[Item]:
    """Training rows that also stand in the test files go, never the test rows. Repeats until none is left."""
    groups = {item.group: item for item in test if item.group}
    by_id = {item.row.id: item for item in train}
    while test:
        gone: dict[str, str] = {}
        for leak in leaks_between([i.row for i in by_id.values()], [i.row for i in test], run.spec.leak_threshold):
            place = f"{leak.test.source}:{leak.test.line}"
            gone.setdefault(leak.train.id, f"{leak.kind} as test row {place}, similarity {leak.similarity:.2f}")
        for row_id, item in by_id.items():
            if item.group in groups:
                gone.setdefault(row_id, f"same {run.spec.group_by} as test row {groups[item.group].record.place}")
        if not gone:
            break
        for row_id, detail in gone.items():
            item = by_id.pop(row_id)
            run.quarantine.add(item.record, detail, reason="leaks into the test set", is_fault=False)
            run.summary.leaks.append({"train": item.record.place, "why": detail})
    if not by_id:
        raise DataError("every training row also stands in the test set", hint="give other files as data.test")
    return list(by_id.values())


def _refuse_too_many_faults(run: _Run) -> None:
    faults, num_read = run.quarantine.faults, run.summary.rows_read
    if len(faults) > run.spec.max_quarantine_share * num_read:
        raise DataError(
            f"{len(faults):,} of {num_read:,} rows cannot be used ({len(faults) / num_read:.0%}; the most allowed is "
            f"{run.spec.max_quarantine_share:.0%}): {_worst(run.quarantine)}",
            hint="mend the files, or raise data.max_quarantine_share if these rows may go",
        )


def _worst(quarantine: Quarantine) -> str:
    """The three commonest reasons, each with its first place."""
    counts = Counter(entry.reason for entry in quarantine.faults).most_common(3)
    first = {entry.reason: entry for entry in reversed(quarantine.faults)}
    return "; ".join(f"{n:,} x {first[r].detail} (first at {first[r].file}:{first[r].line})" for r, n in counts)


def _split(run: _Run, usable: list[Encoded], test: list[Encoded]) -> dict[str, list[Encoded]]:
    spec, wanted = run.spec, run.spec.split
    shares = {"train": wanted.train, "dev": wanted.dev, "test": wanted.test}
    if test:
        both = wanted.train + wanted.dev
        shares = {"train": wanted.train / both, "dev": wanted.dev / both}
    items = [one.item for one in usable]
    how = {"threshold": spec.leak_threshold, "seed": spec.split_seed}
    dealt = deal(items, shares, **how)
    run.summary.proof = proof(items, dealt, shares, **how)
    splits: dict[str, list[Encoded]] = {"train": [], "dev": [], "test": _grouped(test, how)}
    for one, name, root in zip(usable, dealt.split_of, dealt.group_of, strict=True):
        splits[name].append(_with_group(one, items[root].row.id))
    run.summary.proof["rows"] = {name: len(rows) for name, rows in splits.items()}
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
            hint=f"add rows; or {_NO_DEV}",
        )
    if shares.get("test") and not splits["test"]:
        run.summary.warnings.append("no row came to the test split; nothing can be judged on it")
    return splits


def _repeats(run: _Run) -> str:
    """How many rows say again what an earlier row says, in words; '' when none does."""
    counts = run.quarantine.by_reason()
    num = sum(count for reason, count in counts.items() if reason in LIKENESS)
    return f" ({num:,} of {run.summary.rows_read:,} rows repeat an earlier one and were set aside)" if num else ""


def _grouped(encoded: list[Encoded], how: dict) -> list[Encoded]:
    """Rows of test files with their group ids: the clusters of the statistics."""
    items = [one.item for one in encoded]
    roots = deal(items, {"test": 1.0}, **how).group_of
    return [_with_group(one, items[root].row.id) for one, root in zip(encoded, roots, strict=True)]


def _with_group(one: Encoded, group: str) -> Encoded:
    return replace(one, item=replace(one.item, row=replace(one.item.row, group=group)))


def _limit(run: _Run, train: list[Encoded]) -> list[Encoded]:
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


def _unlabelled(run: _Run, items: list[Item], splits: dict[str, list[Encoded]]) -> list[Item]:
    """Prompts without answers that are new: not twice, not near a labelled row."""
    if not items:
        return []
    labelled = [one.item.row for rows in splits.values() for one in rows]
    seen = {prompt_key(row): f"{row.source}:{row.line}" for row in labelled}
    near = leaks_between([item.row for item in items], labelled, run.spec.leak_threshold)
    like = {leak.train.id: f"{leak.test.source}:{leak.test.line}" for leak in reversed(near)}
    kept = []
    for item in items:
        key = prompt_key(item.row)
        other = seen.get(key) or like.get(item.row.id)
        if other:
            run.quarantine.add(
                item.record, f"prompt already seen at {other}", reason="prompt already seen", is_fault=False
            )
        else:
            kept.append(item)
        seen.setdefault(key, item.record.place)
    return kept


def _finish(run: _Run, splits: dict[str, list[Encoded]], unlabelled: list[Item]) -> None:
    """Fills in the summary and checks the conservation law."""
    summary = run.summary
    kept = Counter(one.item.row.source for rows in splits.values() for one in rows)
    kept.update(item.row.source for item in unlabelled)
    for file in summary.files:
        file.rows_kept, file.rows_quarantined = kept[file.file], run.quarantine.num_of(file.file)
        if not file.rows_kept:
            why = Counter(e.reason for e in run.quarantine.entries if e.file == file.file).most_common(1)
            summary.warnings.append(f"{file.file}: none of its {file.rows_read:,} rows is used ({why[0][0]})")
    summary.splits = {name: len(rows) for name, rows in splits.items()} | {"unlabelled": len(unlabelled)}
    summary.quarantined = run.quarantine.by_reason()
    summary.cleaned = {name: count for name, count in sorted(run.cleaned.items()) if count}
    for name, rows in splits.items():
        summary.lengths[name] = length_stats([one.num_tokens for one in rows], summary.sequence_len)
        sequences = [row for one in rows for row in one.rows]
        trained = sum(sum(row.trained) for row in sequences)
        summary.tokens[name] = {"all": sum(len(row.ids) for row in sequences), "trained": trained}
    if summary.lengths["test"]["over"]:
        over = int(summary.lengths["test"]["over"])
        summary.warnings.append(f"{over} test rows are longer than train.sequence_len (kept: tests are never cut)")
    if summary.conflicts:
        summary.warnings.append(f"same prompt, different answer: {len(summary.conflicts)} times (see the report)")
    answers = {one.item.row.answer for one in splits["train"] if one.item.row.messages}
    if len(answers) == 1 and len(splits["train"]) > 1:
        summary.warnings.append(f"every training row has the same answer, {next(iter(answers))[:60]!r}: {_ONE_ANSWER}")
    if not summary.has_dev:
        summary.warnings.append("there is no dev split (data.allow_no_dev): the verdict is forfeited")
    summary.check_conservation()


def _write(run: _Run, splits: dict[str, list[Encoded]], unlabelled: list[Item], out: Path) -> None:
    for name, rows in splits.items():
        (out / f"{name}.jsonl").write_text(row_lines(one.item.row for one in rows), encoding="utf-8", newline="\n")
    lines = row_lines(item.row for item in unlabelled)
    (out / "unlabelled.jsonl").write_text(lines, encoding="utf-8", newline="\n")
    for name in ("train", "dev"):
        write_encoded(out, name, [row for one in splits[name] for row in one.rows])
    (out / "quarantine.jsonl").write_text(run.quarantine.lines(), encoding="utf-8", newline="\n")
    (out / "summary.json").write_text(run.summary.as_json(), encoding="utf-8", newline="\n")
    lengths = [one.num_tokens for rows in splits.values() for one in rows]
    rows = {name: [one.item.row for one in part] for name, part in splits.items()}
    html = data_report(run.summary, rows, lengths, run.quarantine.entries)
    (out / "report.html").write_text(html, encoding="utf-8", newline="\n")


def read_summary(folder: Path) -> dict:
    """summary.json of a prepared folder."""
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))

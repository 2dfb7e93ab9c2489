"""Raw files in, rows ready for training and judging out: the guided tour of the room.

read -> map -> clean -> check -> deduplicate -> remove leaks into the test set -> tokenise and hold against sequence_len
-> group and split, with proof -> keep frozen rows out -> mix -> measure -> write. Every row that is read ends in a
split or in quarantine.jsonl, per file; that law is checked before anything is written. All rows are held in memory
(some kB each); files are streamed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from luthier.config.data import DataSpec
from luthier.data.audit import audit, check_style, compare_groups
from luthier.data.card import dataset_card
from luthier.data.checks import Checker
from luthier.data.dedupe import Deduped, drop_duplicates
from luthier.data.eval_guard import EvalText, read_eval_texts, remove_quoted
from luthier.data.items import Item, prompt_key, prompt_text
from luthier.data.lengths import Codec, Encoded, encode_all, fit_lengths, length_stats
from luthier.data.load import Loader
from luthier.data.mix import mix_rows
from luthier.data.quarantine import Quarantine
from luthier.data.report import data_report
from luthier.data.run_state import Run, refuse_too_many_faults, worst
from luthier.data.sources import Source, check_disjoint, find_sources
from luthier.data.split import leaks_between
from luthier.data.split_rows import NO_DEV, keep_frozen_out, limit_rows, split_rows
from luthier.data.stored import row_lines, write_encoded
from luthier.data.summary import PreparedSummary
from luthier.errors import ConfigError, DataError
from luthier.types import Progress, Row

MaskView = Callable[[Row], list[tuple[str, bool]]]
"""A row as (token text, is it trained) pairs, for the samples of the report."""


def prepare(
    spec: DataSpec,
    *,
    codec: Codec,
    sequence_len: int,
    out: Path,
    base_dir: Path,
    takes_judged: bool = False,
    progress: Progress | None = None,
    show: MaskView | None = None,
) -> PreparedSummary:
    """Prepares the files of `spec` (paths relative to `base_dir`) into the folder `out`, which must exist.

    Writes {train,dev,test,unlabelled}.jsonl, tokens-{train,dev}.*.npy, quarantine.jsonl, findings.jsonl, summary.json,
    report.html, card.md. `progress` counts tokenised rows; `show` draws the mask of the report's samples. Raises
    DataError or ConfigError with the next move.
    """
    _check(spec)
    run = Run(spec, base_dir, Quarantine(), PreparedSummary(sequence_len), Counter(), takes_judged=takes_judged)
    rows = _checked(run, _load(run))
    train, test, replay = (_deduplicate(run, rows[role]) for role in ("train", "test", "replay"))
    train = _remove_leaks(run, train, test)
    train, replay = _remove_quoted(run, train, replay, test)
    encoded = encode_all([*train, *test, *replay], codec, run.quarantine, progress)
    role_of = {item.record.place: role for role, items in (("test", test), ("replay", replay)) for item in items}
    by_role = {role: [one for one in encoded if role_of.get(one.item.record.place, "train") == role] for role in rows}
    fitting = {
        role: fit_lengths(by_role[role], sequence_len, spec.over_length, run.quarantine) for role in ("train", "replay")
    }
    refuse_too_many_faults(run)
    splits = keep_frozen_out(run, split_rows(run, fitting["train"], by_role["test"]))
    splits["train"] = limit_rows(run, splits["train"])
    seen = mix_rows(run, splits, fitting["replay"])
    rest = _unlabelled(run, rows["unlabelled"], splits)
    _finish(run, splits, seen, rest)
    _write(run, splits, seen, rest, out, show)
    return run.summary


def _check(spec: DataSpec) -> None:
    for name in ("leak_threshold", "near_duplicate_threshold"):
        if getattr(spec, name) <= 0:
            raise ConfigError(f"data.{name} is 0: then every row would equal every other", hint="use a value above 0")
    if spec.split.train <= 0:
        raise DataError("data.split.train is 0: there would be nothing to train on", hint="give train a share")
    if spec.split.dev <= 0 and not spec.allow_no_dev:
        raise DataError("data.split.dev is 0: without a dev split nothing can be chosen honestly", hint=NO_DEV)


_ONE_ANSWER = "the tune can learn nothing else (are the rows of the other classes missing?)"


def sources_of(spec: DataSpec, base_dir: Path) -> dict[str, list[Source]]:
    """role -> the files whose rows are prepared; raises DataError when a file has two roles."""
    patterns = {"train": spec.train, "test": spec.test, "unlabelled": spec.unlabelled, "replay": spec.mix.replay.files}
    found = {role: find_sources(some, role, base_dir, allow_hub=spec.allow_hub) for role, some in patterns.items()}
    check_disjoint(*found.values())
    return found


def _load(run: Run) -> dict[str, list[Item]]:
    """role -> its usable rows."""
    sources = sources_of(run.spec, run.base_dir)
    general = run.spec.model_copy(update=GENERAL)
    loaded = {
        role: _load_role(run, some, general if role == "replay" else run.spec, needs_answer=role != "unlabelled")
        for role, some in sources.items()
    }
    for role, words in (("train", "training"), ("test", "test")):
        if sources[role] and not loaded[role]:
            num = len(sources[role])
            raise DataError(f"no usable row in {num} {words} file(s): {worst(run.quarantine)}", hint=_MEND)
    return loaded


GENERAL: dict[str, Any] = {
    "format": "auto",
    "fields": {},
    "roles": {},
    "answer_language": "text",
    "text_unit": "auto",
    "prompt": None,
    "completion": None,
    "json_fields": (),
    "json_schema": None,
    "system": "",
    "group_by": None,
    "stratify_by": None,
}
"""For rows that are not of the task (replay, traffic): nothing of how its rows are read holds for them."""


_MEND = "mend the files, or say how to read them (data.format, data.prompt, data.completion)"


def _load_role(run: Run, sources: Sequence[Source], spec: DataSpec, *, needs_answer: bool) -> list[Item]:
    how = {"needs_answer": needs_answer, "takes_judged": run.takes_judged}
    loader = Loader(spec, run.base_dir, run.quarantine, **how)
    items: list[Item] = []
    for source in sources:
        found, report = loader.load(source)
        items += found
        run.summary.files.append(report)
        run.summary.warnings += report.warnings
    run.cleaned.update(loader.counts)
    return items


def _checked(run: Run, rows: dict[str, list[Item]]) -> dict[str, list[Item]]:
    """The rows of every role after the checks."""
    checker = Checker(run.spec.checks, run.base_dir, run.quarantine)
    checked = {role: checker.run(items) for role, items in rows.items()}
    run.findings.append(checker.lines())
    run.summary.checks["findings"] = checker.counts()
    run.summary.checks["languages"] = dict(checker.languages.most_common())
    checked["train"] = compare_groups(checked["train"], run.spec.checks, run.quarantine, run.summary)
    for role in ("train", "test"):
        if rows[role] and not checked[role]:
            raise DataError(f"data.checks set every row of {role} aside", hint="report instead of drop, and look at it")
    return checked


def _deduplicate(run: Run, items: list[Item]) -> list[Item]:
    result: Deduped = drop_duplicates(items, run.spec.near_duplicate_threshold)
    for duplicate in result.dropped:
        run.quarantine.add(duplicate.item.record, duplicate.detail, reason=duplicate.kind, is_fault=False)
    run.summary.conflicts += [{"first": a.record.place, "other": b.record.place} for a, b in result.conflicts]
    return result.kept


def _remove_leaks(run: Run, train: list[Item], test: list[Item]) -> list[Item]:
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


def _remove_quoted(run: Run, train: list[Item], replay: list[Item], test: list[Item]) -> tuple[list[Item], list[Item]]:
    """Both without the rows that quote a test row or an item of data.decontaminate; replay also without test's like."""
    against = [EvalText(prompt_text(item.row), item.record.place) for item in test]
    files = find_sources(run.spec.decontaminate, "decontaminate", run.base_dir, allow_hub=run.spec.allow_hub)
    against += read_eval_texts(files)
    kept = remove_quoted(train, against, run.quarantine)
    if not kept:
        raise DataError("every training row quotes an evaluation item", hint="is data.decontaminate the training data?")
    return kept, remove_quoted(replay, against, run.quarantine)


def _unlabelled(run: Run, items: list[Item], splits: dict[str, list[Encoded]]) -> list[Item]:
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


def _finish(run: Run, splits: dict[str, list[Encoded]], seen: list[Encoded], unlabelled: list[Item]) -> None:
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
        chosen = [row for one in (seen if name == "train" else rows) for row in one.rows]
        sequences = [sequence for row in chosen for sequence in row.sequences]
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
    audit([one.item for one in splits["train"]], run.spec.checks, summary)
    check_style([one.item for one in splits["train"]], run.spec.style, summary)
    summary.check_conservation()


def _write(
    run: Run,
    splits: dict[str, list[Encoded]],
    seen: list[Encoded],
    unlabelled: list[Item],
    out: Path,
    show: MaskView | None,
) -> None:
    for name, rows in splits.items():
        (out / f"{name}.jsonl").write_text(row_lines(one.item.row for one in rows), encoding="utf-8", newline="\n")
    lines = row_lines(item.row for item in unlabelled)
    (out / "unlabelled.jsonl").write_text(lines, encoding="utf-8", newline="\n")
    for name in ("train", "dev"):
        write_encoded(out, name, [row for one in (seen if name == "train" else splits[name]) for row in one.rows])
    (out / "quarantine.jsonl").write_text(run.quarantine.lines(), encoding="utf-8", newline="\n")
    (out / "findings.jsonl").write_text("".join(run.findings), encoding="utf-8", newline="\n")
    (out / "summary.json").write_text(run.summary.as_json(), encoding="utf-8", newline="\n")
    lengths = [one.num_tokens for rows in splits.values() for one in rows]
    rows = {name: [one.item.row for one in part] for name, part in splits.items()}
    html = data_report(run.summary, rows, lengths, run.quarantine.entries, show)
    (out / "card.md").write_text(dataset_card(run.summary, run.spec), encoding="utf-8", newline="\n")
    (out / "report.html").write_text(html, encoding="utf-8", newline="\n")


def read_summary(folder: Path) -> dict:
    """summary.json of a prepared folder."""
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))

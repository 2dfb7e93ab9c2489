"""Raw files in, rows ready for training and judging out: the guided tour of the room.

read -> map -> clean -> check -> deduplicate -> remove leaks into the test set -> tokenise and hold against sequence_len
-> group and split, with proof -> keep frozen rows out -> mix -> measure -> write. Every row that is read ends in a
split or in quarantine.jsonl, per file; that law is checked before anything is written. Files are read as streams,
rows lie in spools on disk, and every step reads them again: what memory holds of a row does not grow with its length.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from luthier.config.data import DataSpec
from luthier.data.audit import audit, check_style, compare_groups
from luthier.data.card import dataset_card
from luthier.data.checks import Checker
from luthier.data.dedupe import digest_64, drop_duplicates, in_words
from luthier.data.eval_guard import EvalText, read_eval_texts, remove_quoted
from luthier.data.items import prompt_key, prompt_text
from luthier.data.lengths import Codec, encode_all, fit_lengths, length_stats
from luthier.data.load import Loader, cut
from luthier.data.mix import mix_rows
from luthier.data.quarantine import Quarantine
from luthier.data.report import data_report
from luthier.data.run_state import Run, refuse_too_many_faults, worst
from luthier.data.sources import Source, check_disjoint, find_sources
from luthier.data.spill import EncodedItems, Items, Mapped, packed
from luthier.data.split import leaks_between, prompts_of
from luthier.data.split_rows import NO_DEV, keep_frozen_out, limit_rows, split_rows
from luthier.data.stored import row_lines, write_encoded
from luthier.data.summary import PreparedSummary
from luthier.errors import ArtifactError, ConfigError, DataError
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
    rows = _read(run)
    train, test, replay = (_deduplicate(run, rows[role]) for role in ("train", "test", "replay"))
    train = _remove_leaks(run, train, test)
    train, replay = _remove_quoted(run, train, replay, test)
    encoded = encode_all(train + test + replay, codec, run.quarantine, progress)
    of_role = {
        role: encoded.take(np.isin(encoded.rows, some.rows))
        for role, some in (("train", train), ("test", test), ("replay", replay))
    }
    fitting = {
        role: fit_lengths(of_role[role], sequence_len, spec.over_length, run.quarantine) for role in ("train", "replay")
    }
    refuse_too_many_faults(run)
    splits = keep_frozen_out(run, split_rows(run, fitting["train"], of_role["test"]))
    splits = limit_rows(run, splits)
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


def _read(run: Run) -> dict[str, Items]:
    """role -> its usable rows, cleaned and checked. In the order of the files."""
    sources = sources_of(run.spec, run.base_dir)
    checker = Checker(run.spec.checks, run.base_dir, run.quarantine)
    parts: dict[str, list[Items]] = {role: [] for role in sources}
    num_usable = Counter()
    for role, some in sources.items():
        loader = _loader(run, role)
        for source in some:
            opened = loader.open(source)
            for records in cut(opened.counted()):
                usable = list(loader.items(records, opened.mapping, is_document=opened.is_document))
                num_usable[role] += len(usable)
                kept = checker.run(usable)
                ids = [int(item.row.id, 16) for item in kept]
                parts[role].append(run.store.add([packed(item) for item in kept], ids))
                run.findings.append(checker.taken_lines().encode())
            run.summary.files.append(opened.report)
            run.summary.warnings += opened.report.warnings
        run.cleaned.update(loader.counts)
    for role, words in (("train", "training"), ("test", "test")):
        if sources[role] and not num_usable[role]:
            num = len(sources[role])
            raise DataError(f"no usable row in {num} {words} file(s): {worst(run.quarantine)}", hint=_MEND)
    run.summary.checks["findings"] = checker.counts()
    run.summary.checks["languages"] = dict(checker.languages.most_common())
    checked = {role: Items.joined(run.store, some) for role, some in parts.items()}
    checked["train"] = compare_groups(checked["train"], run.spec.checks, run.quarantine, run.summary)
    for role in ("train", "test"):
        if num_usable[role] and not len(checked[role]):
            raise DataError(f"data.checks set every row of {role} aside", hint="report instead of drop, and look at it")
    return checked


def _loader(run: Run, role: str) -> Loader:
    """The loader for the files of a role."""
    spec = run.spec.model_copy(update=GENERAL) if role == "replay" else run.spec
    how = {"needs_answer": role != "unlabelled", "takes_judged": run.takes_judged, "is_replay": role == "replay"}
    return Loader(spec, run.base_dir, run.quarantine, **how)


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


def _deduplicate(run: Run, items: Items) -> Items:
    result = drop_duplicates(items, run.spec.near_duplicate_threshold)
    for row, of, kind, similarity in result.dropped:
        detail = in_words(kind, items[of].record.place, similarity)
        run.quarantine.add(items[row].record, detail, reason=kind, is_fault=False)
    for a, b in result.conflicts:
        run.summary.conflicts.append({"first": items[a].record.place, "other": items[b].record.place})
    return items.take(result.kept)


def _remove_leaks(run: Run, train: Items, test: Items) -> Items:
    """Training rows that also stand in the test files go, never the test rows. Repeats until none is left."""
    train = _without_groups_of(run, train, test)
    while len(test):
        gone: dict[int, str] = {}
        for leak in leaks_between(prompts_of(train), prompts_of(test), run.spec.leak_threshold):
            place = test[leak.test].record.place
            gone.setdefault(leak.train, f"{leak.kind} as test row {place}, similarity {leak.similarity:.2f}")
        if not gone:
            break
        train = _without_leaks(run, train, gone)
    if not len(train):
        raise DataError("every training row also stands in the test set", hint="give other files as data.test")
    return train


def _without_groups_of(run: Run, train: Items, test: Items) -> Items:
    """The training rows whose group no test row has."""
    groups = {item.group: item.record.place for item in test if item.group} if run.spec.group_by else {}
    if not groups:
        return train
    place_of = ((index, groups.get(item.group)) for index, item in enumerate(train))
    gone = {index: f"same {run.spec.group_by} as test row {place}" for index, place in place_of if place}
    return _without_leaks(run, train, gone)


def _without_leaks(run: Run, train: Items, gone: dict[int, str]) -> Items:
    """The rows but those of `gone` (index -> why), which go to the quarantine and into the report."""
    rows = np.array(sorted(gone), dtype=np.int64)
    for index, item in zip(rows.tolist(), train.take(rows), strict=True):
        run.quarantine.add(item.record, gone[index], reason="leaks into the test set", is_fault=False)
        run.summary.leaks.append({"train": item.record.place, "why": gone[index]})
    return train.take(~np.isin(np.arange(len(train)), rows))


def _remove_quoted(run: Run, train: Items, replay: Items, test: Items) -> tuple[Items, Items]:
    """Both without the rows that quote a test row or an item of data.decontaminate; replay also without test's like."""
    against = [EvalText(prompt_text(item.row), item.record.place) for item in test]
    files = find_sources(run.spec.decontaminate, "decontaminate", run.base_dir, allow_hub=run.spec.allow_hub)
    against += read_eval_texts(files)
    kept = remove_quoted(train, against, run.quarantine)
    if not len(kept):
        raise DataError("every training row quotes an evaluation item", hint="is data.decontaminate the training data?")
    return kept, remove_quoted(replay, against, run.quarantine)


def _unlabelled(run: Run, items: Items, splits: dict[str, EncodedItems]) -> Items:
    """Prompts without answers that are new: not twice, not near a labelled row."""
    if not len(items):
        return items
    labelled = (splits["train"] + splits["dev"] + splits["test"]).items
    keys = [digest_64(prompt_key(item.row)) for item in items]
    asked, seen = set(keys), {}
    for item in labelled:
        key = digest_64(prompt_key(item.row))
        if key in asked:
            seen[key] = item.record.place
    near = leaks_between(prompts_of(items), prompts_of(labelled), run.spec.leak_threshold)
    like = {leak.train: leak.test for leak in reversed(near)}
    is_new = np.zeros(len(items), dtype=bool)
    for index, (key, item) in enumerate(zip(keys, items, strict=True)):
        other = seen.get(key) or (labelled[like[index]].record.place if index in like else None)
        if other:
            run.quarantine.add(
                item.record, f"prompt already seen at {other}", reason="prompt already seen", is_fault=False
            )
        is_new[index] = not other
        seen.setdefault(key, item.record.place)
    return items.take(is_new)


def _finish(run: Run, splits: dict[str, EncodedItems], seen: EncodedItems, unlabelled: Items) -> None:
    """Fills in the summary and checks the conservation law."""
    summary = run.summary
    kept: Counter[str] = Counter()
    answers: set[str] = set()
    for name, rows in splits.items():
        for item in rows.items:
            kept[item.row.source] += 1
            if name == "train" and item.row.messages and len(answers) < 2:
                answers.add(item.row.answer)
    kept.update(item.row.source for item in unlabelled)
    for file in summary.files:
        file.rows_kept, file.rows_quarantined = kept[file.file], run.quarantine.num_of(file.file)
        if not file.rows_kept:
            why = next(iter(run.quarantine.reasons_of(file.file)))
            summary.warnings.append(f"{file.file}: none of its {file.rows_read:,} rows is used ({why})")
    summary.splits = {name: len(rows) for name, rows in splits.items()} | {"unlabelled": len(unlabelled)}
    summary.quarantined = run.quarantine.by_reason()
    summary.cleaned = {name: count for name, count in sorted(run.cleaned.items()) if count}
    for name, rows in splits.items():
        summary.lengths[name] = length_stats(rows.num_tokens, summary.sequence_len)
        every, trained = (seen if name == "train" else rows).totals
        summary.tokens[name] = {"all": every, "trained": trained}
    if summary.lengths["test"]["over"]:
        over = int(summary.lengths["test"]["over"])
        summary.warnings.append(f"{over} test rows are longer than train.sequence_len (kept: tests are never cut)")
    if summary.conflicts:
        summary.warnings.append(
            f"same prompt, different answer or judgement: {len(summary.conflicts)} times (see the report)"
        )
    if len(answers) == 1 and len(splits["train"]) > 1:
        summary.warnings.append(f"every training row has the same answer, {next(iter(answers))[:60]!r}: {_ONE_ANSWER}")
    if not summary.has_dev:
        summary.warnings.append("there is no dev split (data.allow_no_dev): the verdict is forfeited")
    audit(splits["train"].items, run.spec.checks, summary)
    check_style(splits["train"].items, run.spec.style, summary)
    summary.check_conservation()


def _write(
    run: Run,
    splits: dict[str, EncodedItems],
    seen: EncodedItems,
    unlabelled: Items,
    out: Path,
    show: MaskView | None,
) -> None:
    rows = {name: Mapped(part.items, lambda item: item.row) for name, part in splits.items()}
    for name, some in (rows | {"unlabelled": Mapped(unlabelled, lambda item: item.row)}).items():
        _write_lines(out / f"{name}.jsonl", row_lines(some))
    for name in ("train", "dev"):
        write_encoded(out, name, (seen if name == "train" else splits[name]).sequences())
    _write_lines(out / "quarantine.jsonl", run.quarantine.lines())
    _write_lines(out / "findings.jsonl", (part.decode() for part in run.findings.read(range(len(run.findings)))))
    (out / "summary.json").write_text(run.summary.as_json(), encoding="utf-8", newline="\n")
    lengths = np.concatenate([part.num_tokens for part in splits.values()]).tolist()
    html = data_report(run.summary, rows, lengths, run.quarantine.entries, show)
    (out / "card.md").write_text(dataset_card(run.summary, run.spec), encoding="utf-8", newline="\n")
    (out / "report.html").write_text(html, encoding="utf-8", newline="\n")


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(lines)


def read_summary(folder: Path) -> dict:
    """summary.json of a prepared folder. Raises ArtifactError when it is missing or torn."""
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        missing = [field.name for field in fields(PreparedSummary) if field.name not in summary]
    except (OSError, ValueError, TypeError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error})", hint="run `luthier prepare` again") from error
    if not isinstance(summary, dict) or missing or not isinstance(summary["proof"], dict):
        raise ArtifactError(f"{path}: no summary of a preparation", hint="run `luthier prepare` again")
    return summary

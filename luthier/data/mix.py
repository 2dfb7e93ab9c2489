"""How often each training row is seen, and how much general data is mixed in.

What: a row's factor is its file's weight x the evening-out of files x the lift of its class; a factor of 2.3 is two
copies and, for three rows of ten, a third. Rows that get no copy are set aside by name, so that the conservation law
holds; copies exist only in what the trainer reads, never in train.jsonl. Replay rows are chosen by hash to the wanted
share. Why replay: a tune forgets what it no longer sees.
Sources: A. Conneau et al., XLM-R (2020), for the temperature; A. Robins (1995), for rehearsal.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from luthier.config.data_mix import MixSpec
from luthier.data.items import Item
from luthier.data.quarantine import Quarantine
from luthier.data.run_state import Run
from luthier.data.spill import EncodedItems
from luthier.data.split import leaks_between, prompts_of
from luthier.errors import ConfigError, DataError
from luthier.text.normalise import normalise

LEFT_OUT = "left out by data.mix"


def copies_of(items: Sequence[Item], spec: MixSpec) -> list[int]:
    """How often each item is seen in an epoch. Raises ConfigError for a weight whose file does not exist."""
    factors = [
        a * b * c for a, b, c in zip(_weights(items, spec), _evened(items, spec), _lifted(items, spec), strict=True)
    ]
    whole = [int(factor + 1e-9) for factor in factors]
    return [
        n + (_chance(spec.seed, item) < factor - n - 1e-9)
        for n, factor, item in zip(whole, factors, items, strict=True)
    ]


def _weights(items: Sequence[Item], spec: MixSpec) -> list[float]:
    files = {item.row.source for item in items}
    weight = dict.fromkeys(files, 1.0)
    for pattern, value in spec.weights.items():
        named = [file for file in files if file == pattern or fnmatch.fnmatchcase(file, pattern)]
        if not named:
            raise ConfigError(
                f"data.mix.weights: {pattern!r} names no file with training rows",
                hint=f"the files are {', '.join(sorted(files)[:6])}",
            )
        weight |= dict.fromkeys(named, value)
    return [weight[item.row.source] for item in items]


def _evened(items: Sequence[Item], spec: MixSpec) -> list[float]:
    """Files in proportion to rows ** (1 / temperature), at the same number of rows in all."""
    sizes = Counter(item.row.source for item in items)
    powers = {file: num ** (1 / spec.temperature) for file, num in sizes.items()}
    scale = len(items) / sum(powers.values()) if items else 1.0
    return [scale * powers[item.row.source] / sizes[item.row.source] for item in items]


def _lifted(items: Sequence[Item], spec: MixSpec) -> list[float]:
    """(commonest class / this class) ** power, at most `upsample_most`."""
    if spec.upsample == "none":
        return [1.0] * len(items)
    classes = [item.stratum if spec.upsample == "stratum" else normalise(item.row.answer) for item in items]
    sizes = Counter(classes)
    most = max(sizes.values(), default=1)
    return [min((most / sizes[one]) ** spec.upsample_power, spec.upsample_most) for one in classes]


def _chance(seed: int, item: Item) -> float:
    digest = hashlib.sha256(f"mix:{seed}:{item.row.id}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def choose_replay(
    replay: EncodedItems, num_task: int, spec: MixSpec, quarantine: Quarantine
) -> tuple[EncodedItems, str]:
    """(the replay rows that make up `share` of the whole beside `num_task` rows, a warning or ''); the rest goes to the
    quarantine."""
    wanted = round(num_task * spec.replay.share / (1 - spec.replay.share))
    chance = np.array([_chance(spec.seed, item) for item in replay.items])
    is_chosen = np.zeros(len(replay), dtype=bool)
    is_chosen[np.argsort(chance, kind="stable")[:wanted]] = True
    for item in replay.take(~is_chosen).items:
        quarantine.add(item.record, f"{LEFT_OUT}.replay.share", reason=LEFT_OUT, is_fault=False)
    chosen, said = replay.take(is_chosen), ""
    if len(chosen) < wanted:
        share = f"a share of {spec.replay.share:g}"
        said = f"data.mix.replay: {len(chosen):,} general rows, {wanted:,} were wanted for {share}"
    return chosen, said


def apply_mix(train: EncodedItems, spec: MixSpec, quarantine: Quarantine) -> tuple[EncodedItems, EncodedItems, dict]:
    """(distinct rows that are seen, the same with copies, the record for the manifest)."""
    copies = np.array(copies_of(train.items, spec), dtype=np.int64)
    for item in train.take(copies == 0).items:
        quarantine.add(item.record, LEFT_OUT, is_fault=False)
    seen = train.take(np.repeat(np.arange(len(train)), copies))
    return train.take(copies > 0), seen, {"spec": spec.model_dump(mode="json"), "files": _by_file(train, copies)}


def _by_file(train: EncodedItems, copies: np.ndarray) -> dict[str, dict[str, int]]:
    """file -> rows there were, rows used, and how many an epoch shows."""
    table: dict[str, dict[str, int]] = {}
    for item, num in zip(train.items, copies.tolist(), strict=True):
        entry = table.setdefault(item.row.source, {"rows": 0, "used": 0, "seen_per_epoch": 0})
        entry["rows"] += 1
        entry["used"] += num > 0
        entry["seen_per_epoch"] += num
    return table


def mix_rows(run: Run, splits: dict[str, EncodedItems], replay: EncodedItems) -> EncodedItems:
    """What the trainer reads: the training rows with their copies and the replay rows. splits["train"] gets each row
    once."""
    spec = run.spec.mix
    if not spec.is_on:
        return splits["train"]
    kept, seen, record = apply_mix(splits["train"], spec, run.quarantine)
    if not len(kept):
        raise DataError("data.mix leaves no training row", hint="raise data.mix.weights")
    task = (splits["train"] + splits["dev"] + splits["test"]).items
    near = leaks_between(prompts_of(replay.items), prompts_of(task), run.spec.leak_threshold)
    like = {leak.train: leak.test for leak in near}
    for index, other in like.items():
        detail = f"replay row like {task[other].record.place}"
        reason = "replay row like a row of the task"
        run.quarantine.add(replay.items[index].record, detail, reason=reason, is_fault=False)
    fresh = replay.take(~np.isin(np.arange(len(replay)), list(like)))
    fresh.set_groups(np.array(fresh.store.ids, dtype=np.uint64)[fresh.rows])
    general, warning = choose_replay(fresh, len(seen), spec, run.quarantine)
    if spec.replay.files and warning:
        run.summary.warnings.append(warning)
    record["replay"] = {"rows": len(general), "share": round(len(general) / (len(seen) + len(general)), 4)}
    run.summary.mix = record | {"rows_seen_per_epoch": len(seen) + len(general)}
    splits["train"] = kept + general
    return seen + general

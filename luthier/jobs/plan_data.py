"""How much data a run has, for a plan: counted on the prepared data when it stands, else estimated on a sample of rows.

Nothing here needs torch, builds a stage or writes a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from luthier.bases.tokenizer import Tokenizer
from luthier.chat.codec import ChatCodec
from luthier.config.load import Project
from luthier.data.items import Item
from luthier.data.load import Loader, look
from luthier.data.pack import epoch_batches, plan_packs
from luthier.data.quarantine import Quarantine
from luthier.data.sequences import RowEncoder, rows_become
from luthier.data.sources import Source, find_sources
from luthier.data.stored import read_encoded
from luthier.data.turns import RowError
from luthier.errors import ArtifactError, DataError, LuthierError
from luthier.jobs.sharing import decide
from luthier.plan.activations import MicroBatch
from luthier.plan.workload import CHARS_PER_TOKEN, Workload, estimate
from luthier.store.publish import digest_file, read_manifest
from luthier.types import Batch

SAMPLE_ROWS = 200
SAMPLE_BATCHES = 64
MAX_PACKED_ROWS = 20_000
MAX_READ_BYTES = 64 << 20  # of larger files only the first rows are read
_BY_CHARS = f"{CHARS_PER_TOKEN:g} characters a token"
_LOOK = "`luthier prepare` says of every row why it is left out"


def find_workload(project: Project, tokenizer: Tokenizer | None) -> Workload:
    """The workload of the project. Raises DataError when a data file is missing or unreadable."""
    prepared = _prepared_folder(project, tokenizer)
    return count_workload(project, prepared) if prepared else _estimated(project, tokenizer)


def _prepared_folder(project: Project, tokenizer: Tokenizer | None) -> Path | None:
    """The prepared stage that `luthier train` would reuse: same data section, length, tokenizer and files."""
    data = project.spec.data
    sources = [
        one
        for role in ("train", "test")
        for one in find_sources(getattr(data, role), role, project.folder, allow_hub=data.allow_hub)
    ]
    wanted = {
        "data": data.model_dump(mode="json"),
        "sequence_len": project.spec.longest_row,
        "rows_become": rows_become(project.spec.loss),
    }
    if tokenizer is not None:
        wanted["tokenizer"] = tokenizer.digest
    for folder in sorted(project.output_dir.glob("prepare-*")):
        try:
            inputs = read_manifest(folder)["inputs"]
        except (ArtifactError, OSError, KeyError):
            continue
        files = inputs.get("files", {})
        if {key: inputs.get(key) for key in wanted} != wanted:
            continue
        if all(files.get(source.name) == digest_file(source.path) for source in sources):
            return folder
    return None


def count_workload(project: Project, folder: Path) -> Workload:
    """The workload of the project on the prepared data in `folder`."""
    train = project.spec.train
    rows, dev = read_encoded(folder, "train"), read_encoded(folder, "dev")
    packs = epoch_batches(rows, train.micro_batch_tokens, train.seed, 0)
    sizes = [int(rows.lengths[pack].sum()) for pack in packs]
    spread = {round(x) for x in np.linspace(0, len(packs) - 1, min(SAMPLE_BATCHES, len(packs)))}
    fullest = sorted(range(len(packs)), key=lambda i: -sizes[i])[:8]
    layout = decide(project.spec, rows, packs)
    computed = 1 - layout.share_saved
    batches = {i: layout.lay_out([rows[j] for j in packs[i]]) for i in spread | set(fullest)}
    mean = [_micro(batches[i]) for i in sorted(spread)]
    largest = [_micro(batch) for batch in batches.values()]
    return Workload(
        num_rows=len(rows),
        num_tokens=round(computed * rows.num_tokens),
        num_trained=rows.num_trained,
        longest=int(rows.lengths.max()),
        micro_batches=len(packs),
        peak=MicroBatch(
            max(micro.num_tokens for micro in largest),
            max(micro.num_trained for micro in largest),
            max(micro.sight for micro in largest),
        ),
        mean=MicroBatch(
            round(computed * rows.num_tokens / len(packs)),
            max(1, round(rows.num_trained / len(packs))),
            sum(micro.sight for micro in mean) / len(mean),
        ),
        dev_tokens=dev.num_tokens,
        dev_trained=dev.num_trained,
        source=f"counted on the prepared data ({folder.name})",
        is_exact=True,
    )


def _micro(batch: Batch) -> MicroBatch:
    """Sizes of one batch; a document that continues a shared prefix sees that too."""
    lengths = np.diff(batch.cu_seqlens).astype(np.int64)
    parents = np.full(len(lengths), -1) if batch.parents_D is None else np.asarray(batch.parents_D)
    before = np.where(parents >= 0, lengths[parents], 0)
    sight = float((lengths * (lengths + 2 * before)).sum() / lengths.sum())
    return MicroBatch(int(lengths.sum()), max(1, batch.num_trained), sight)


@dataclass
class _Sample:
    """Some rows of the raw files. lengths and trained: tokens of each; num_rows: usable rows in all files."""

    lengths: list[int] = field(default_factory=list)
    trained: list[int] = field(default_factory=list)
    num_rows: float = 0.0
    how: set[str] = field(default_factory=set)


def _estimated(project: Project, tokenizer: Tokenizer | None) -> Workload:
    data = project.spec.data
    sample, codec, loss = _Sample(), _codec(project, tokenizer), project.spec.loss
    sources = find_sources(data.train, "train", project.folder, allow_hub=data.allow_hub)
    for source in sources:
        take = SAMPLE_ROWS // len(sources) + 1
        if source.path.stat().st_size <= MAX_READ_BYTES:
            items, _ = Loader(data, project.folder, Quarantine(), takes_judged=loss.compares).load(source)
            sample.num_rows += len(items)
            spread = np.linspace(0, len(items) - 1, min(len(items), take))
            _measure([items[round(x)] for x in spread], codec, sample)
        else:
            _look_at(source, sample)
    if not sample.lengths:
        raise DataError(f"data.train: no usable row in {', '.join(one.name for one in sources)}", hint=_LOOK)
    rows = f"{len(sample.lengths)} of about {sample.num_rows:,.0f} rows"
    source = f"estimated on {rows} ({', '.join(sorted(sample.how))}), before duplicates are removed"
    source += _without_long_rows(sample, project.spec.longest_row, data.over_length)
    shares = data.split.train + data.split.dev if data.test else 1.0
    num_train = max(1, round(sample.num_rows * data.split.train / max(1e-9, shares)))
    dev_share = data.split.dev / max(1e-9, data.split.train)
    if data.limit_rows and num_train > data.limit_rows:
        dev_share *= num_train / data.limit_rows
        num_train = data.limit_rows
    if data.limit_dev_rows:
        dev_share = min(dev_share, data.limit_dev_rows / num_train)
    return estimate(
        sample.lengths,
        sum(sample.trained) / max(1, sum(sample.lengths)),
        num_rows=num_train,
        micro_batches=_num_packs(sample.lengths, num_train, project.spec.train.micro_batch_tokens),
        dev_share=dev_share,
        budget=project.spec.train.micro_batch_tokens,
        source=source,
    )


def _without_long_rows(sample: _Sample, longest: int, over_length: str) -> str:
    """Takes out what training never sees, and says so in words; '' when every row fits."""
    fits = [length <= longest for length in sample.lengths]
    if all(fits):
        return ""
    if not any(fits):
        raise DataError(
            f"data.train: every row is longer than train.sequence_len = {longest}",
            hint=f"set train.sequence_len to {max(sample.lengths)} to keep all",
        )
    sample.num_rows *= sum(fits) / len(fits)
    sample.lengths = [length for length, fit in zip(sample.lengths, fits, strict=True) if fit]
    sample.trained = [trained for trained, fit in zip(sample.trained, fits, strict=True) if fit]
    does = "sets aside" if over_length == "quarantine" else "refuses (data.over_length)"
    return f"; {len(fits) - sum(fits)} of them are longer than train.sequence_len, which prepare {does}: not counted"


def _num_packs(lengths: Sequence[int], num_rows: int, budget: int) -> int:
    """Micro-batches of `num_rows` rows like these; beyond MAX_PACKED_ROWS in proportion."""
    packed = min(num_rows, MAX_PACKED_ROWS)
    order = np.random.default_rng(0).permutation(packed).tolist()
    packs = plan_packs([lengths[i % len(lengths)] for i in range(packed)], budget, order=order)
    return max(1, round(len(packs) * num_rows / packed))


def _codec(project: Project, tokenizer: Tokenizer | None) -> RowEncoder | None:
    try:
        longest = project.spec.longest_row
        return None if tokenizer is None else RowEncoder(ChatCodec(tokenizer), project.spec.loss, longest)
    except LuthierError:  # training will say what is wrong with the template; a plan can do without
        return None


def _measure(items: Sequence[Item], codec: RowEncoder | None, sample: _Sample) -> None:
    for item in items:
        try:
            rows = codec.encode(item.row) if codec else []
        except (LuthierError, RowError):
            rows = []
        sample.how.add("tokenised" if rows else _BY_CHARS)
        sample.lengths += [row.num_tokens for row in rows]
        sample.trained += [sum(sum(sequence.trained) for sequence in row.sequences) for row in rows]
        if not rows:
            num_chars = len(item.row.text) + sum(len(message["content"]) for message in item.row.messages)
            sample.lengths.append(max(1, round(num_chars / CHARS_PER_TOKEN)))
            sample.trained.append(round(len(item.row.answer or item.row.text) / CHARS_PER_TOKEN))


def _look_at(source: Source, sample: _Sample) -> None:
    """A file too large to read for a plan: its first rows, and as many rows as its size holds of them."""
    texts = [" ".join(str(value) for value in row.values()) for row in look(source.path).rows]
    row_bytes = sum(len(text.encode()) for text in texts) / max(1, len(texts))
    sample.num_rows += source.path.stat().st_size / max(1.0, row_bytes)
    sample.lengths += [max(1, round(len(text) / CHARS_PER_TOKEN)) for text in texts]
    sample.trained += [max(1, round(len(text) / CHARS_PER_TOKEN / 2)) for text in texts]
    sample.how |= {_BY_CHARS, f"the first rows of {source.name} and its size"}

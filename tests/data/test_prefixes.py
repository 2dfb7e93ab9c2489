"""Shared prefixes: who shares what, by brute force; no target lies in a prefix; rows and their targets stay whole."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from luthier.data.pack import epoch_batches, make_batch, make_shared_batch, measure_sharing
from luthier.data.prefixes import share_prefixes
from luthier.data.stored import EncodedSet
from luthier.types import EncodedRow


def row(name: str, ids, first_trained: int) -> EncodedRow:
    return EncodedRow(name, tuple(ids), tuple(i >= first_trained for i in range(len(ids))))


def common(rows) -> int:
    return next((i for i, tokens in enumerate(zip(*rows, strict=False)) if len(set(tokens)) > 1), min(map(len, rows)))


def saved(groups) -> int:
    return sum(num_prefix * (len(members) - 1) for num_prefix, members in groups)


def best_saving(keys: list[tuple], minimum: int) -> int:
    """Over every way to part the rows into neighbours in sorted order."""
    keys, best = sorted(keys), 0
    for cuts in itertools.product([False, True], repeat=len(keys) - 1):
        places = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(keys)]
        parts = [keys[a:b] for a, b in itertools.pairwise(places)]
        best = max(best, sum((len(part) - 1) * common(part) for part in parts if common(part) >= minimum))
    return best


@pytest.mark.parametrize("seed", range(12))
def test_saves_the_most(seed):
    """At least what the best parting of neighbours saves, on random trees of prefixes over two letters, so that groups
    lie within groups; each row once, each prefix true.
    """
    rng = np.random.default_rng(seed)
    ids = [rng.integers(0, 2, rng.integers(1, 12)) for _ in range(8)]
    limits = [int(rng.integers(0, len(x))) for x in ids]
    groups = share_prefixes(ids, limits, 2)
    assert sorted(i for _, members in groups for i in members) == list(range(8))
    for num_prefix, members in groups:
        assert (num_prefix >= 2) == (len(members) >= 2) and num_prefix != 1
        assert num_prefix <= min(limits[i] for i in members)
        assert len({tuple(ids[i][:num_prefix]) for i in members}) == 1
    assert saved(groups) >= best_saving([tuple(x[:limit]) for x, limit in zip(ids, limits, strict=True)], 2)


def rows_by_id(batch) -> dict[str, tuple]:
    """row id -> (ids, kept positions, targets, positions), read back from a batch document by document."""
    bounds, parents = batch.cu_seqlens.tolist(), batch.parents_D
    parents = [-1] * (len(bounds) - 1) if parents is None else parents.tolist()
    rows, names = {}, iter(batch.row_ids)
    for document in (d for d in range(len(parents)) if d not in parents):
        low, high, parent = bounds[document], bounds[document + 1], parents[document]
        before = range(bounds[parent], bounds[parent + 1]) if parent >= 0 else range(0)
        at = [*before, *range(low, high)]
        mine = (batch.keep_K >= low) & (batch.keep_K < high)
        kept = (batch.keep_K[mine] - low + len(before)).tolist()
        rows.setdefault(next(names), []).append(
            (batch.ids_T[at].tolist(), kept, batch.targets_K[mine].tolist(), batch.positions_T[at].tolist())
        )
    assert next(names, None) is None
    return rows


def check(rows, **expected) -> None:
    """The shared batch holds exactly the rows of the plain one, and computes `computed` tokens."""
    plain, shared = make_batch(rows), make_shared_batch(rows, expected.pop("minimum", 4))
    assert rows_by_id(shared) == rows_by_id(plain)
    assert shared.num_trained == plain.num_trained and shared.num_represented == len(plain.ids_T)
    assert len(shared.ids_T) == expected["computed"]
    if shared.parents_D is not None:
        kept_in = np.searchsorted(shared.cu_seqlens, shared.keep_K, side="right") - 1
        assert not set(kept_in.tolist()) & set(shared.parents_D.tolist())


PROMPT = [5, 6, 7, 8, 9, 10, 11, 12]


def test_prefix_ends_before_the_token_that_predicts_the_answer():
    """Prompts that are wholly equal: the last prompt token stays with each row, its hidden state carries loss."""
    rows = [row("a", [*PROMPT, 1, 2], 8), row("b", [*PROMPT, 1, 3], 8), row("c", [*PROMPT, 4], 8)]
    check(rows, computed=7 + 3 + 3 + 2)


def test_trained_tokens_are_not_shared():
    """Rows that agree far into their answers, and a first turn that is trained: shared only up to the first loss."""
    early = [row("a", [*PROMPT, 1, 2], 5), row("b", [*PROMPT, 1, 3], 8)]
    check(early, computed=4 + 6 + 6)
    check([row("a", PROMPT, 1), row("b", PROMPT, 1)], computed=16)
    check([row("a", PROMPT, 0), row("b", PROMPT, 0)], computed=16)


def test_equal_rows_rows_without_loss_and_short_rows():
    twice = row("a", [*PROMPT, 1, 2], 8)
    check([twice, twice], computed=7 + 3 + 3)
    check([row("n", PROMPT, 99), row("m", [*PROMPT, 4], 99)], computed=7 + 1 + 2)
    check([row("s", [5], 0), row("t", [5, 6], 1), row("a", [*PROMPT, 1], 8), row("b", [*PROMPT, 2], 8)], computed=14)


def test_too_short_a_prefix_and_rows_alone_change_nothing():
    rows = [row("a", [*PROMPT, 1], 8), row("b", [*PROMPT, 2], 8), row("c", [3, 4], 1)]
    plain, shared = make_batch(rows), make_shared_batch(rows)
    assert shared.parents_D is None and shared.row_ids == plain.row_ids
    for name in ("ids_T", "positions_T", "cu_seqlens", "keep_K", "targets_K"):
        left, right = getattr(shared, name), getattr(plain, name)
        assert left.dtype == right.dtype and np.array_equal(left, right)


def random_rows(num: int, seed: int) -> list[EncodedRow]:
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(0, 500, n).tolist() for n in (40, 70, 3)]
    prompts.append([*prompts[0], *rng.integers(0, 500, 50).tolist()])
    made = []
    for number in range(num):
        prompt = prompts[rng.integers(4)]
        own = rng.integers(0, 500, rng.integers(2, 30)).tolist()
        made.append(row(f"r{number}", [*prompt, *own], len(prompt) + int(rng.integers(0, len(own)))))
    return made


def test_several_groups_within_one_pack():
    """Four prompts, one of them within another: the batch is right, and children of one parent stand together."""
    rows = random_rows(40, 0)
    shared = make_shared_batch(rows)
    check(rows, computed=len(shared.ids_T), minimum=32)
    parents = shared.parents_D.tolist()
    assert len({p for p in parents if p >= 0}) == 3
    for document, parent in enumerate(parents):
        assert parent < 0 or parents[document - 1] == parent or document - 1 == parent


def test_the_order_of_rows_does_not_depend_on_sharing():
    """One epoch plan serves both: the same rows in the same steps, and what sharing saves is counted without them."""
    rows = EncodedSet.of(random_rows(120, 1))
    packs = epoch_batches(rows, 800, seed=0, epoch=0)
    sharing = measure_sharing(rows, packs)
    batches = [make_shared_batch([rows[i] for i in pack]) for pack in packs]
    assert [sorted(b.row_ids) for b in batches] == [sorted(str(rows.row_ids[i]) for i in pack) for pack in packs]
    assert sharing.computed_tokens == sum(len(b.ids_T) for b in batches)
    assert sharing.represented_tokens == rows.num_tokens == sum(b.num_represented for b in batches)
    assert sharing.prefix_tokens >= 69 and 0.2 < sharing.share_saved < 1 and sharing.num_rows == 120
    assert sharing.rows_sharing == sum(0 if b.parents_D is None else (b.parents_D >= 0).sum() for b in batches)

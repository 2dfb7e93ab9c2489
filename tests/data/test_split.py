"""Duplicates and splits against brute force: nothing planted survives, no edge straddles, shares come out."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest

from luthier.data.dedupe import drop_duplicates
from luthier.data.items import Item, prompt_text, row_id
from luthier.data.records import Record
from luthier.data.split import Edges, deal, leaks_between, proof, straddling_edges
from luthier.errors import DataError
from luthier.types import Row
from tests.text.plain_shingles import jaccard_of, shingles

SHARES = {"train": 0.7, "dev": 0.13, "test": 0.17}
WORDS = [f"word{i}" for i in range(800)]


def item(prompt: str, answer: str = "a", line: int = 1, group: str = "", stratum: str = "") -> Item:
    messages = ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})
    row = Row(row_id(messages, ""), messages, "", "f", line)
    return Item(row, Record("f", line, 0, 1, "s"), group, stratum)


def corpus(seed: int, num: int = 300, num_near: int = 60, group: int = 0) -> list[Item]:
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(12, 40))) for _ in range(num)]
    for _ in range(num_near):
        words = rng.choice(texts).split()
        words[rng.randrange(len(words))] = "changed"
        texts.append(" ".join(words))
    rng.shuffle(texts)
    groups = [str(rng.randrange(group)) if group else "" for _ in texts]
    return [item(t, f"a{i}", i, g, rng.choice("xyz")) for i, (t, g) in enumerate(zip(texts, groups, strict=True))]


def brute_force(items: list[Item], split_of: list[str], threshold: float) -> int:
    sets = [shingles(prompt_text(i.row)) for i in items]
    num = len(items)
    return sum(
        split_of[i] != split_of[j] and jaccard_of(sets[i], sets[j]) >= threshold for i in range(num) for j in range(i)
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_no_similar_pair_straddles_by_brute_force(seed, threshold):
    items = corpus(seed)
    dealt = deal(items, SHARES, threshold=threshold, seed=seed)
    assert brute_force(items, dealt.split_of, threshold) == 0 == straddling_edges(dealt)
    sizes = proof(dealt, SHARES, threshold=threshold, seed=seed)["rows"]
    assert all(abs(sizes[name] - share * len(items)) <= 2 for name, share in SHARES.items())
    assert deal(items, SHARES, threshold=threshold, seed=seed).split_of == dealt.split_of
    assert deal(items, SHARES, threshold=threshold, seed=seed + 1).split_of != dealt.split_of


def test_a_random_split_would_have_leaked():
    items = corpus(0)
    rng = random.Random(0)
    assert brute_force(items, [rng.choice(["train", "test"]) for _ in items], 0.7) > 5


def test_group_column_and_conflicting_prompts_stay_together():
    items = corpus(1, group=40)
    dealt = deal(items, SHARES, threshold=0.7, seed=0)
    for value in {i.group for i in items}:
        assert len({s for i, s in zip(items, dealt.split_of, strict=True) if i.group == value}) == 1
    same = [item("same question ?", f"a{i}", i) for i in range(5)] + corpus(2)
    assert len(set(deal(same, SHARES, threshold=0.7, seed=0).split_of[:5])) == 1


def test_strata_keep_their_shares():
    items = [
        item(f"alone {' '.join(random.Random(i).choices(WORDS, k=9))}", "a", i, "", "abc"[i % 3]) for i in range(300)
    ]
    dealt = deal(items, SHARES, threshold=0.7, seed=0)
    for stratum in "abc":
        counts = [s for i, s in zip(items, dealt.split_of, strict=True) if i.stratum == stratum]
        assert abs(counts.count("test") - 17) <= 1 and abs(counts.count("dev") - 13) <= 1


def test_shares_are_unbiased_towards_groups():
    """Rows of groups reach every split, not only train."""
    items = [item(f"{' '.join(random.Random(i // 3).choices(WORDS, k=20))}", f"a{i}", i) for i in range(300)]
    dealt = deal(items, SHARES, threshold=0.7, seed=0)
    assert set(dealt.split_of) == {"train", "dev", "test"} and dealt.split_of.count("test") in range(45, 58)


def test_the_proof_refuses_a_wrong_split():
    items = corpus(3)
    dealt = deal(items, SHARES, threshold=0.7, seed=0)
    a, b = dealt.split_of.index("train"), dealt.split_of.index("test")
    wrong = Edges.of(np.array([min(a, b)]), np.array([max(a, b)]), "same group")
    dealt = dataclasses.replace(dealt, edges=dealt.edges + wrong)
    with pytest.raises(DataError, match="1 edges straddle"):
        proof(dealt, SHARES, threshold=0.7, seed=0)


def test_a_common_instruction_does_not_make_all_rows_one_group():
    text = "read the ticket below with great care and then write down all five labels as one json object : "
    items = [item(text + " ".join(random.Random(i).choices(WORDS, k=8)), f"a{i}", i) for i in range(120)]
    assert len(set(deal(items, SHARES, threshold=0.7, seed=0).group_of)) == 120
    assert len(drop_duplicates(items, 0.8).kept) == 120


def test_leaks_between_finds_every_planted_row():
    train, test = ([prompt_text(i.row) for i in corpus(seed)] for seed in (4, 5))
    assert leaks_between(train, test, 0.7) == []
    planted = [text.upper() + "  " for text in test[:7]]
    found = leaks_between(train + planted, test, 0.7)
    assert {leak.train for leak in found} == set(range(len(train), len(train) + 7))
    assert {leak.kind for leak in found} >= {"same prompt"}


def test_exact_near_and_conflicting_duplicates():
    base = " ".join(WORDS[:30])
    near = base.replace("word15 ", "other ")
    items = [
        item(base, "yes", 1),
        item("  " + base.upper(), "Yes ", 2),
        item(base, "no", 3),
        item(near, "yes", 4),
        item("something else entirely", "yes", 5),
        item(near, "no", 6),  # equal to a row that is gone, and still like the first
    ]
    result = drop_duplicates(items, 0.8)
    assert [items[i].record.line for i in result.kept] == [1, 5]
    assert [(items[row].record.line, items[of].record.line, kind) for row, of, kind, _ in result.dropped] == [
        (2, 1, "exact duplicate"),
        (3, 1, "same prompt with another answer"),
        (4, 1, "near duplicate"),
        (6, 1, "same prompt with another answer"),
    ]
    lines = [(items[a].record.line, items[b].record.line) for a, b in result.conflicts]
    assert lines == [(1, 3), (4, 6)]
    assert [items[i].record.line for i in drop_duplicates(items, 1.0).kept] == [1, 3, 4, 5, 6]


def test_judgements_tell_rows_apart_and_contradict_one_another():
    """Of judged rows, the same answers judged otherwise are a conflict; other answers to one prompt are none."""
    other = ({"role": "assistant", "content": "y"},)
    sets = {
        "labels": [{"label": True}, {"label": False}, {"label": True}],
        "pairs": [
            {"rejected": other},
            {"answer": "y", "rejected": ({**other[0], "content": "x"},)},
            {"rejected": other},
        ],
        "steps": [{"steps": (("x", True),)}, {"steps": (("x", False),)}, {"answer": "y", "steps": (("y", True),)}],
    }
    kept = {"labels": [0, 1], "pairs": [0, 1], "steps": [0, 1, 2]}
    for name, kinds in sets.items():
        rows = [item("q", kind.pop("answer", "x"), n).row for n, kind in enumerate(kinds)]
        judged = [dataclasses.replace(row, **kind) for row, kind in zip(rows, kinds, strict=True)]
        result = drop_duplicates([Item(row, Record("f", row.line, 0, 0, "")) for row in judged], 1.0)
        assert result.kept.tolist() == kept[name] and result.conflicts == [(0, 1)], name


def test_near_duplicates_by_brute_force():
    items = corpus(6, num_near=120)
    kept = drop_duplicates(items, 0.8).kept
    sets = [shingles(prompt_text(items[i].row)) for i in kept]
    left = sum(jaccard_of(sets[i], sets[j]) >= 0.8 for i in range(len(kept)) for j in range(i))
    assert left <= 3  # LSH 14 x 8 finds .92 of the pairs at .8, and more above


def test_tiny_sets():
    assert deal([], SHARES, threshold=0.7, seed=0).split_of == []
    assert deal([item("x")], SHARES, threshold=0.7, seed=0).split_of == ["train"]
    assert sorted(deal([item(c) for c in "xyz"], SHARES, threshold=0.7, seed=0).split_of) == ["dev", "test", "train"]

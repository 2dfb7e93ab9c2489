"""Normalising, shingles, similar pairs: against plain definitions and brute force."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from luthier.text import shingles as shingles_module
from luthier.text import similar as similar_module
from luthier.text.groups import Groups
from luthier.text.normalise import normalise, scrub
from luthier.text.shingles import Shingled, boilerplate, jaccard, shingle_sets
from luthier.text.similar import BANDS_FOR_GROUPING, BANDS_FOR_REMOVAL, exact_pairs, similar_pairs
from tests.text.plain_shingles import jaccard_of, shingles

WORDS = [f"w{i}" for i in range(400)]


def corpus(seed: int, num: int = 250) -> list[str]:
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(3, 40))) for _ in range(num)]
    for _ in range(num // 2):
        words = rng.choice(texts).split()
        for _ in range(rng.randint(0, 3)):
            words[rng.randrange(len(words))] = rng.choice(WORDS)
        texts.append(" ".join(words))
    return texts


def test_equal_to_a_reader_is_equal_after_normalising():
    same = ["Café  \n au lait", "cafe\u0301 au\u00a0lait", "ＣＡＦÉ au lait", "ca\u200bfé au lait\ufeff"]
    assert {normalise(text) for text in same} == {"café au lait"}
    assert normalise("Straße") == normalise("STRASSE")
    rng = random.Random(0)
    for _ in range(200):
        text = "".join(chr(rng.randrange(128)) for _ in range(20))
        assert normalise(text) == normalise(text + "\u200b")  # the short way for ASCII agrees with the long one


def test_scrub_takes_only_what_no_text_should_carry():
    counts: Counter[str] = Counter()
    assert scrub("\ufeff a\r\nb\rc\x00\x07\td\u2028e\u200df ", counts) == "a\nb\nc\td\u2028e\u200df"
    assert {name.split()[0] for name, count in counts.items() if count} == {"line", "control", "outer", "invisible"}
    assert scrub("caf\ufffd", counts) == "caf\ufffd" and counts["texts with lost characters, U+FFFD (kept)"] == 1
    assert scrub("plain") == "plain" and scrub(" \n ") == ""


def test_shingles_are_the_word_3_grams():
    """Against a plain definition on strings: as many shingles, as many in common, for every kind of text."""
    odd = ["One two, THREE four!", "one", "one two", "?!", "  ", "", "東京タワーの高さ", "a b c a b c a b c"]
    texts = [*odd, *corpus(0, 60)]
    sets, plain = shingle_sets(texts), [shingles(text) for text in texts]
    assert [len(one) for one in plain[:7]] == [2, 1, 1, 1, 0, 0, 6]
    assert sets.sizes.tolist() == [len(one) for one in plain]
    for i in range(len(texts)):
        assert (sets[i][1:] > sets[i][:-1]).all()
        for j in range(i):
            assert jaccard(sets[i], sets[j]) == pytest.approx(jaccard_of(plain[i], plain[j]), abs=1e-12)
    assert [one.tolist() for one in (sets.take(np.array([3, 0]))[k] for k in (0, 1))] == [
        sets[3].tolist(),
        sets[0].tolist(),
    ]


def test_hashes_do_not_depend_on_the_process():
    code = "from luthier.text.shingles import shingle_sets as s; print(s(['one two three four', 'x']).hashes.tolist())"
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] == f"{shingle_sets(['one two three four', 'x']).hashes.tolist()}\n"


def test_boilerplate():
    same = shingle_sets(["the same words"] * 60)
    assert boilerplate(same).tolist() == same[0].tolist()
    assert not len(boilerplate(shingle_sets(["the same words"] * 10)))
    texts = [f"please read this ticket and answer {i} {i + 1} {i + 2}" for i in range(60)] + ["please read this ticket"]
    sets = Shingled(texts)
    assert len(sets.boilerplate) == 4
    taken = sets.take(np.arange(61))
    assert taken.sizes.tolist() == [3] * 60 + [2]  # nothing but boilerplate: it keeps what it has


@pytest.mark.parametrize("threshold", [0.3, 0.7, 0.8, 1.0])
def test_exact_join_equals_brute_force(threshold):
    texts = corpus(1)
    plain = [shingles(text) for text in texts]
    labels = [random.Random(i).choice("abc") for i in range(len(texts))]
    wanted = {
        (i, j)
        for j in range(len(texts))
        for i in range(j)
        if labels[i] != labels[j] and jaccard_of(plain[i], plain[j]) >= threshold
    }
    assert {(i, j) for i, j, _ in exact_pairs(Shingled(texts), labels, threshold)} == wanted and wanted
    with pytest.raises(ValueError, match="threshold"):
        exact_pairs(Shingled(texts), labels, 0.0)


def test_neither_batches_nor_held_sets_nor_partitions_change_the_pairs(monkeypatch):
    """A large collection is read again batch by batch and joined in several parts; a small one stays in memory."""
    texts, labels = corpus(2), [i % 3 for i in range(375)]
    found = []
    for batch, held, part in ((4096, 1 << 24, 200_000), (7, 0, 50), (100, 1000, 10)):
        monkeypatch.setattr(shingles_module, "BATCH_TEXTS", batch)
        monkeypatch.setattr(shingles_module, "HELD_SHINGLES", held)
        monkeypatch.setattr(similar_module, "_PARTITION_TEXTS", part)
        sets = Shingled(texts)
        found.append([list(similar_pairs(sets, 0.7, 28)), list(exact_pairs(sets, labels, 0.5))])
    assert found[0] == found[1] == found[2] and all(found[0])


def test_lsh_recall_against_the_exact_join():
    for seed in range(3):
        texts = list({shingles(text): text for text in corpus(seed)}.values())
        sets = Shingled(texts)
        exact = {(i, j): s for i, j, s in exact_pairs(sets, range(len(texts)), 0.7)}
        found = {(i, j) for i, j, _ in similar_pairs(sets, 0.7, BANDS_FOR_GROUPING)}
        assert found <= set(exact) and len(found) >= 0.99 * len(exact)
        close = {pair for pair, similarity in exact.items() if similarity >= 0.9}
        assert len(close & {(i, j) for i, j, _ in similar_pairs(sets, 0.8, BANDS_FOR_REMOVAL)}) >= 0.97 * len(close)


def test_many_copies_do_not_make_many_pairs():
    copies = ["the very same text again and again"] * 2000
    found = list(similar_pairs(Shingled(copies), 0.8, BANDS_FOR_REMOVAL))
    assert len(found) < 32 * 2000 and {(0, j) for j in range(1, 2000)} <= {(i, j) for i, j, _ in found}


def test_groups():
    groups = Groups(6)
    assert groups.join(4, 2) and groups.join(2, 5) and not groups.join(5, 4)
    assert groups.members() == {0: [0], 1: [1], 2: [2, 4, 5], 3: [3]}

"""Normalising, shingles, similar pairs: against plain definitions and brute force."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from luthier.text.groups import Groups
from luthier.text.normalise import normalise, scrub
from luthier.text.shingles import boilerplate, jaccard, shingle_all, shingles
from luthier.text.similar import BANDS_FOR_GROUPING, BANDS_FOR_REMOVAL, exact_pairs, similar_pairs

WORDS = [f"w{i}" for i in range(400)]


def corpus(seed: int, num: int = 250) -> list[frozenset[str]]:
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(3, 40))) for _ in range(num)]
    for _ in range(num // 2):
        words = rng.choice(texts).split()
        for _ in range(rng.randint(0, 3)):
            words[rng.randrange(len(words))] = rng.choice(WORDS)
        texts.append(" ".join(words))
    return shingle_all(texts)[0]


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


def test_shingles_and_jaccard():
    assert shingles("One two, THREE four!") == {"one two three", "two three four"}
    assert shingles("one") == {"one"} and shingles("?!") == {"?!"} and shingles("  ") == frozenset()
    assert len(shingles("東京タワーの高さ")) == 6  # no spaces: cut per character
    assert jaccard(shingles("a b c d"), shingles("a b c e")) == pytest.approx(1 / 3)
    assert jaccard(frozenset(), frozenset()) == 0.0
    assert boilerplate([shingles("the same words")] * 60) == {"the same words"}
    assert boilerplate([shingles("the same words")] * 10) == frozenset()


@pytest.mark.parametrize("threshold", [0.3, 0.7, 0.8, 1.0])
def test_exact_join_equals_brute_force(threshold):
    sets = corpus(1)
    labels = [random.Random(i).choice("abc") for i in range(len(sets))]
    wanted = {
        (i, j)
        for j in range(len(sets))
        for i in range(j)
        if labels[i] != labels[j] and jaccard(sets[i], sets[j]) >= threshold
    }
    assert {(i, j) for i, j, _ in exact_pairs(sets, labels, threshold)} == wanted and wanted
    with pytest.raises(ValueError, match="threshold"):
        list(exact_pairs(sets, labels, 0.0))


def test_lsh_recall_against_the_exact_join():
    for seed in range(3):
        sets = corpus(seed)
        one_each = list(dict.fromkeys(sets))  # equal sets pair with their first only
        exact = {(i, j): s for i, j, s in exact_pairs(one_each, range(len(one_each)), 0.7)}
        found = {(i, j) for i, j, _ in similar_pairs(one_each, 0.7, BANDS_FOR_GROUPING)}
        assert found <= set(exact) and len(found) >= 0.99 * len(exact)
        close = {pair for pair, similarity in exact.items() if similarity >= 0.9}
        assert len(close & {(i, j) for i, j, _ in similar_pairs(one_each, 0.8, BANDS_FOR_REMOVAL)}) >= 0.97 * len(close)


def test_many_copies_do_not_make_many_pairs():
    copies = [shingles("the very same text again and again")] * 2000
    assert len(list(similar_pairs(copies, 0.8, BANDS_FOR_REMOVAL))) == 1999


def test_groups():
    groups = Groups(6)
    assert groups.join(4, 2) and groups.join(2, 5) and not groups.join(5, 4)
    assert groups.members() == {0: [0], 1: [1], 2: [2, 4, 5], 3: [3]}

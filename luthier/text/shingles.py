"""Shingles: the set of a text's word n-grams, as hashes, and how much of two sets is shared (Jaccard similarity).

What: word 3-grams of the normalised text. Why 3: tickets and questions are short; with 5-grams one changed word in a
20-word text already costs a quarter of all shingles. Scripts written without spaces are cut per character.
Why hashes: 48 bits instead of a string make a set a sorted array, and a batch of sets one array with starts, which
numpy sorts and compares without a Python object a shingle. Two different shingles of a pair of texts agree by chance
once in 10^10 pairs. The hash depends on nothing but the words (Python's own differs from process to process).
Source: A. Broder, "On the resemblance and containment of documents" (1997).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from luthier.text.normalise import normalise

SIZE = 3
HASH_BITS = 48
MAX_TEXTS_AT_ONCE = (1 << (64 - HASH_BITS)) - 1
BATCH_TEXTS = 4096
CHARS_AT_ONCE = 1 << 21
"""Of so many characters (or of one text) the words lie in memory at once: about 60 bytes a word."""
HELD_SHINGLES = 1 << 24
"""So many hashes (8 bytes each) of one collection stay in memory; the others are made again when they are needed."""
BOILERPLATE_SHARE, MIN_BOILERPLATE_TEXTS, MAX_SAMPLE_TEXTS = 0.3, 50, 10_000
_UNSPACED = "\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORDS = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_MAX_KNOWN_WORDS = 1 << 18
_ODD = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93], dtype=np.uint64)
_known_words: dict[str, int] = {}


@dataclass(frozen=True)
class ShingleSets:
    """Sets of one batch of texts. hashes: uint64 below 2 ** 48, ascending and distinct within a set; set i is
    hashes[starts[i]:starts[i + 1]]."""

    hashes: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.hashes[self.starts[index] : self.starts[index + 1]]

    @property
    def sizes(self) -> np.ndarray:
        """Shingles of every set."""
        return np.diff(self.starts)

    @property
    def owners(self) -> np.ndarray:
        """The set that each hash belongs to."""
        return np.repeat(np.arange(len(self)), self.sizes)

    def only(self, keeps: np.ndarray) -> ShingleSets:
        """The sets with those of their hashes that `keeps` (bool, one a hash) says."""
        sums = np.concatenate([[0], np.cumsum(keeps)])
        return ShingleSets(self.hashes[keeps], sums[self.starts])

    def take(self, rows: np.ndarray) -> ShingleSets:
        """The sets of these indexes."""
        sizes = self.sizes[rows]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        places = np.repeat(self.starts[rows] - starts[:-1], sizes) + np.arange(starts[-1])
        return ShingleSets(self.hashes[places], starts)


def shingle_sets(texts: Iterable[str]) -> ShingleSets:
    """The word n-grams of each text; a text of fewer words is one shingle; one without words is its symbols; an empty
    one has none."""
    parts, some, num_chars = [], [], 0
    for text in texts:
        some.append(text)
        num_chars += len(text)
        if num_chars >= CHARS_AT_ONCE or len(some) == MAX_TEXTS_AT_ONCE:
            parts.append(_shingle_sets(some))
            some, num_chars = [], 0
    return joined([*parts, _shingle_sets(some)])


def _shingle_sets(texts: Sequence[str]) -> ShingleSets:
    words_of_text = [_words(text) for text in texts]
    lengths = np.fromiter(map(len, words_of_text), dtype=np.int64, count=len(texts))
    words = np.array(_hash_words(words_of_text), dtype=np.uint64)
    owners = np.repeat(np.arange(len(texts), dtype=np.uint64), lengths)
    grams = words[:-2] * _ODD[0] + words[1:-1] * _ODD[1] + words[2:] * _ODD[2]
    inside = owners[:-2] == owners[2:]
    first = np.concatenate([[0], np.cumsum(lengths)])[:-1]
    one, two = first[lengths == 1], first[lengths == 2]
    hashes = np.concatenate([grams[inside], words[one] * _ODD[0], words[two] * _ODD[0] + words[two + 1] * _ODD[1]])
    owners = np.concatenate([owners[:-2][inside], owners[one], owners[two]])
    hashes = (hashes ^ (hashes >> np.uint64(32))) * _ODD[3] >> np.uint64(64 - HASH_BITS)
    keys = np.sort((owners << np.uint64(HASH_BITS)) | hashes)
    keys = keys[np.concatenate([[True], keys[1:] != keys[:-1]])] if len(keys) else keys
    starts = np.searchsorted(keys, np.arange(len(texts) + 1, dtype=np.uint64) << np.uint64(HASH_BITS))
    return ShingleSets(keys & np.uint64((1 << HASH_BITS) - 1), starts)


def _words(text: str) -> list[str]:
    folded = normalise(text)
    return _WORDS.findall(folded) or ([folded] if folded else [])


def _hash_words(words_of_text: Sequence[Sequence[str]]) -> list[int]:
    known = _known_words
    if len(known) > _MAX_KNOWN_WORDS:
        known.clear()
    for word in {word for words in words_of_text for word in words}.difference(known):
        known[word] = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "little")
    return [known[word] for words in words_of_text for word in words]


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Shared share: |a & b| / |a | b|; 0 when both are empty (two empty texts say nothing about each other)."""
    if not len(a) or not len(b):
        return 0.0
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def boilerplate(sets: ShingleSets) -> np.ndarray:
    """Shingles that more than BOILERPLATE_SHARE of the texts carry: a common instruction, not what a text is about.

    Left in, one instruction in front of every row would make all rows near-duplicates. With fewer than
    MIN_BOILERPLATE_TEXTS texts a share says little, so nothing is taken.
    """
    if len(sets) < MIN_BOILERPLATE_TEXTS:
        return np.empty(0, dtype=np.uint64)
    hashes, counts = np.unique(sets.hashes, return_counts=True)
    return hashes[counts > BOILERPLATE_SHARE * len(sets)]


class Shingled:
    """The shingle sets of a collection of texts without the boilerplate of the whole, made batch by batch.

    A text that is nothing but boilerplate keeps all its shingles. What is boilerplate is measured on at most
    MAX_SAMPLE_TEXTS texts taken evenly. Texts are read as often as needed; memory does not grow with them.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        step = -(-len(texts) // MAX_SAMPLE_TEXTS) or 1
        sample = shingle_sets(texts[::step])
        self.boilerplate = boilerplate(sample)
        self._held: dict[int, ShingleSets] = {}
        self._num_held = 0
        for first in range(0, len(self) if step == 1 else 0, BATCH_TEXTS):
            self._hold(first, self._cleared(sample.take(np.arange(first, min(first + BATCH_TEXTS, len(self))))))

    def __len__(self) -> int:
        return len(self._texts)

    def batches(self) -> Iterator[tuple[int, ShingleSets]]:
        """(index of its first text, sets) of every batch, in order."""
        for first in range(0, len(self), BATCH_TEXTS):
            sets = self._held.get(first)
            if sets is None:
                sets = self._cleared(shingle_sets(self._texts[first : first + BATCH_TEXTS]))
                self._hold(first, sets)
            yield first, sets

    def take(self, rows: np.ndarray) -> ShingleSets:
        """The sets of these indexes (ascending)."""
        parts, made = [], rows // BATCH_TEXTS * BATCH_TEXTS
        for first in np.unique(made).tolist():
            here, held = rows[made == first], self._held.get(first)
            part = held.take(here - first) if held else self._cleared(shingle_sets([self._texts[int(i)] for i in here]))
            parts.append(part)
        return joined(parts)

    def _hold(self, first: int, sets: ShingleSets) -> None:
        if self._num_held + len(sets.hashes) <= HELD_SHINGLES:
            self._held[first] = sets
            self._num_held += len(sets.hashes)

    def _cleared(self, sets: ShingleSets) -> ShingleSets:
        if not len(self.boilerplate):
            return sets
        keeps = ~np.isin(sets.hashes, self.boilerplate)
        nothing_else = np.bincount(sets.owners[keeps], minlength=len(sets)) == 0
        return sets.only(keeps | nothing_else[sets.owners])


def joined(parts: Sequence[ShingleSets]) -> ShingleSets:
    """The sets of several batches as one."""
    sizes = np.concatenate([np.empty(0, dtype=np.int64), *(part.sizes for part in parts)])
    hashes = np.concatenate([np.empty(0, dtype=np.uint64), *(part.hashes for part in parts)])
    return ShingleSets(hashes, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))

"""How much of an evaluation item a text contains word for word: 8-gram cover and the longest run.

What: an index of the items' word 8-grams; for a text, the tokens of each item that its 8-grams cover, and the longest
contiguous match. Why not only similarity: a test question quoted inside a long document shares few of the document's
shingles, but all of its own.
Sources: Tülu 3 / OLMo (8-gram cover of an item by one training row > 50%), GPT-3 (13-gram overlap), ConTAM,
arXiv:2411.03923 (the longest match from one row beats a union over rows).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.text.normalise import normalise

SIZE = 8
MIN_COVER = 0.5
MIN_RUN = 13
WHOLE_COVER = 0.95
COMMON_SHARE = 0.01
_MIN_COMMON, _MIN_COMMON_TEXTS = 4, 10
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Overlap:
    """Item `item` (index) is covered to the share `cover`, which is `covered` tokens; `run`: tokens of the longest
    contiguous match."""

    item: int
    cover: float
    covered: int
    run: int


class CoverIndex:
    """Evaluation items, ready to be looked for in training texts.

    8-grams that stand in many items (over 1% of them, at least 4) are an instruction around the items, not the items:
    they do not count. An item of fewer than 8 words counts as found only when the text is nothing else.
    """

    def __init__(self, items: Sequence[str]) -> None:
        self._words = [words_of(item) for item in items]
        limit = max(_MIN_COMMON, int(COMMON_SHARE * len(items)))
        holders = Counter(gram for words in self._words for gram in set(_grams(words, SIZE)))
        self._places: dict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
        self._short: dict[tuple[str, ...], int] = {}
        for number, words in enumerate(self._words):
            if 0 < len(words) < SIZE:
                self._short.setdefault(tuple(words), number)
            for start, gram in enumerate(_grams(words, SIZE)):
                if holders[gram] <= limit:
                    self._places[gram].append((number, start))
        self.num_common = sum(count > limit for count in holders.values())

    def ignore_common(self, rows: Sequence[Sequence[str]]) -> None:
        """Forgets the 8-grams that stand in many of the training rows (over 1%, at least 10; a row is a list of texts):
        an instruction that all rows carry is no quotation."""
        holders: Counter[tuple[str, ...]] = Counter()
        for texts in rows:
            holders.update({gram for text in texts for gram in _grams(words_of(text), SIZE) if gram in self._places})
        limit = max(_MIN_COMMON_TEXTS, int(COMMON_SHARE * len(rows)))
        for gram, count in holders.items():
            if count > limit:
                del self._places[gram]
                self.num_common += 1

    def overlaps(self, text: str) -> list[Overlap]:
        """The items that share an 8-gram with `text`, and short items that `text` equals, by item."""
        words = words_of(text)
        covered: dict[int, set[int]] = defaultdict(set)
        longest: Counter[int] = Counter()
        running: dict[tuple[int, int], int] = {}
        for gram in _grams(words, SIZE):
            here: dict[tuple[int, int], int] = {}
            for item, start in self._places.get(gram, ()):
                here[item, start] = running.get((item, start - 1), SIZE - 1) + 1
                covered[item].update(range(start, start + SIZE))
                longest[item] = max(longest[item], here[item, start])
            running = here
        found = [
            Overlap(i, len(tokens) / len(self._words[i]), len(tokens), longest[i])
            for i, tokens in sorted(covered.items())
        ]
        same = self._short.get(tuple(words))
        return found if same is None else [*found, Overlap(same, 1.0, len(words), len(words))]


def is_leak(overlap: Overlap) -> bool:
    """Whether this much is taken as the item itself: 13 words in a row; half of it and 13 words in all; or all of
    a short one (half of a 14-word question is a turn of phrase: 8 words that many people use)."""
    enough = overlap.cover >= MIN_COVER and overlap.covered >= MIN_RUN
    return overlap.run >= MIN_RUN or enough or overlap.cover >= WHOLE_COVER


def words_of(text: str) -> list[str]:
    """The words that are compared: of the normalised text, without punctuation."""
    return _WORD.findall(normalise(text))


def _grams(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[i:] for i in range(size)), strict=False))

"""Training and evaluation rows held against a sample of real traffic: do they look like what the model will be asked?

What: shares by length, turns, system prompt, language, topic and style, and for each the population stability index
(PSI) between the traffic and the rows. Why PSI: one scale for all of them, with the usual reading (over 0.1 shifted,
over 0.25 far); what chance alone gives at these sample sizes is subtracted, or a small sample would always look far.
Topics are clusters of the vocabulary (text/topics.py, no neural model), made from all texts together. `unlike_training`
is the share of prompts that resemble no training prompt; for the evaluation rows it says what is normal.
Sources: N. Siddiqi, "Credit Risk Scorecards" (2006), for PSI; B. Yurdakul (2018) for its mean under no change.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from luthier.config.data import DataSpec
from luthier.data.balance import top_terms
from luthier.data.items import prompt_text
from luthier.data.load import Loader
from luthier.data.prepare import GENERAL
from luthier.data.quarantine import Quarantine
from luthier.data.run_state import worst
from luthier.data.sources import find_sources
from luthier.errors import DataError
from luthier.text.language import identify
from luthier.text.topics import clusters, embed
from luthier.types import Row

SHIFTED, FAR = 0.1, 0.25
MIN_TRAFFIC = 30
NUM_TOPICS = 12
MAX_ROWS = 3_000
ALIKE_COSINE = 0.35
_LENGTH_QUANTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Feature:
    """One comparison. shares: set -> value -> share; psi: of each set against the traffic, chance subtracted."""

    name: str
    shares: dict[str, dict[str, float]]
    psi: dict[str, float]

    @property
    def verdict(self) -> str:
        """same, shifted or far, by the worst of the sets."""
        worst = max(self.psi.values())
        return "far" if worst > FAR else "shifted" if worst > SHIFTED else "same"


@dataclass(frozen=True)
class Comparison:
    """rows: set -> rows compared; lengths: set -> (median, 90%) words of a prompt; unlike_training: set -> share."""

    rows: dict[str, int]
    features: list[Feature]
    lengths: dict[str, tuple[int, int]]
    unlike_training: dict[str, float]
    warnings: list[str] = field(default_factory=list)

    @property
    def far(self) -> list[str]:
        """The features in which a set is far from the traffic."""
        return [feature.name for feature in self.features if feature.verdict == "far"]


STYLE: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("asks with a question mark", lambda text: "?" in text),
    ("begins in lower case", lambda text: text[:1].islower()),
    ("several lines", lambda text: "\n" in text.strip()),
    ("polite words", lambda text: re.search(r"\b(?:please|thanks|thank you|kindly)\b", text, re.I) is not None),
    ("exclamation mark", lambda text: "!" in text),
    ("a number", lambda text: re.search(r"\d", text) is not None),
    ("ends without punctuation", lambda text: text.rstrip()[-1:].isalnum()),
)


def read_traffic(path: Path, spec: DataSpec) -> tuple[list[Row], int]:
    """(rows, number of rows that could not be read) of a traffic sample: through the project's prompt template where it
    has the columns (then with the project's system prompt: columns do not show one), else by its own format, as it is.
    """
    sources = find_sources((str(path.absolute()),), "traffic", path.absolute().parent)
    error: DataError | None = None
    for one in ([spec] if spec.prompt else []) + [spec.model_copy(update=GENERAL)]:
        quarantine = Quarantine()
        try:
            loaded = [Loader(one, path.parent, quarantine, needs_answer=False).load(source)[0] for source in sources]
        except DataError as failed:
            error = failed
            continue
        rows = [item.row for items in loaded for item in items]
        if rows:
            return rows, len(quarantine.entries)
        error = DataError(f"{path}: no row could be read: {worst(quarantine)}", hint=_READABLE)
    raise DataError(str(error), hint=_READABLE)


_READABLE = (
    "give requests as text, a line each, or as rows whose column is called prompt, question, text or messages, or as "
    "the columns of data.prompt"
)


def compare(train: Sequence[Row], evaluation: Sequence[Row], traffic: Sequence[Row]) -> Comparison:
    """Holds train and evaluation rows against traffic; of more than 3,000 rows every n-th is taken."""
    sets = {"traffic": _thin(traffic), "train": _thin(train), "eval": _thin(evaluation)}
    sets = {name: rows for name, rows in sets.items() if rows}
    prompts = {name: [prompt_text(row) for row in rows] for name, rows in sets.items()}
    lengths = {name: [len(text.split()) for text in texts] for name, texts in prompts.items()}
    edges = _length_edges(lengths)
    topics, unlike = _topics(prompts)
    values: dict[str, dict[str, list]] = {
        "prompt length (words)": {name: [_bin(n, edges) for n in some] for name, some in lengths.items()},
        "turns": {name: [str(min(_num_turns(r), 5)) for r in rows] for name, rows in sets.items()},
        "system prompt": {name: ["yes" if _has_system(r) else "no" for r in rows] for name, rows in sets.items()},
        "language": {name: identify(texts) for name, texts in prompts.items()},
        "topic": topics,
    }
    for style, test in STYLE:
        values[style] = {name: ["yes" if test(t) else "no" for t in texts] for name, texts in prompts.items()}
    features = [_feature(name, of_set) for name, of_set in values.items()]
    spread = {n: (int(np.median(some)), int(np.quantile(some, 0.9))) for n, some in lengths.items()}
    rows = {name: len(some) for name, some in sets.items()}
    few = f"the sample is small ({rows['traffic']}; {MIN_TRAFFIC} at least): only large shifts can be seen"
    return Comparison(rows, features, spread, unlike, [few] if rows["traffic"] < MIN_TRAFFIC else [])


def psi(traffic: Sequence[Hashable], other: Sequence[Hashable]) -> float:
    """Population stability index of two samples of categories, less what equal populations give on average:
    (categories - 1) x (1/n + 1/m). Never below 0."""
    names = sorted({*traffic, *other}, key=str)
    n, m = len(traffic), len(other)
    seen, found = Counter(traffic), Counter(other)
    total = 0.0
    for name in names:
        p = (seen[name] + 0.5) / (n + 0.5 * len(names))
        q = (found[name] + 0.5) / (m + 0.5 * len(names))
        total += (p - q) * math.log(p / q)
    return max(total - (len(names) - 1) * (1 / n + 1 / m), 0.0)


def _feature(name: str, of_set: dict[str, list[str]]) -> Feature:
    shares = {}
    for which, values in of_set.items():
        counts = Counter(values)
        shares[which] = {str(value): round(num / len(values), 4) for value, num in sorted(counts.items())}
    seen = of_set["traffic"]
    against = {which: round(psi(seen, values), 3) for which, values in of_set.items() if which != "traffic"}
    return Feature(name, shares, against)


def _topics(prompts: dict[str, list[str]]) -> tuple[dict[str, list[str]], dict[str, float]]:
    """(set -> topic of every prompt, set -> share of prompts that resemble no training prompt)."""
    texts = [text for some in prompts.values() for text in some]
    points_ND, terms, weights_NV = embed(texts)
    numbers = clusters(points_ND, min(NUM_TOPICS, max(2, len(texts) // 30)))
    names = {int(n): ", ".join(top_terms(weights_NV, numbers == n, terms)) or "other" for n in np.unique(numbers)}
    topics, points, start = {}, {}, 0
    for name, some in prompts.items():
        part = slice(start, start + len(some))
        topics[name] = [names[int(number)] for number in numbers[part]]
        points[name] = points_ND[part]
        start += len(some)
    unlike = {
        name: round(float((some @ points["train"].T).max(axis=1).__lt__(ALIKE_COSINE).mean()), 4)
        for name, some in points.items()
        if name != "train"
    }
    return topics, unlike


def _thin(rows: Sequence[Row]) -> list[Row]:
    return list(rows[:: max(math.ceil(len(rows) / MAX_ROWS), 1)])


def _length_edges(lengths: dict[str, list[int]]) -> np.ndarray:
    """The quartiles of every set: those of the traffic alone would not see that rows are shorter than all of it."""
    quartiles = [np.quantile(some, _LENGTH_QUANTILES, method="nearest") for some in lengths.values()]
    return np.unique(np.concatenate(quartiles))


def _bin(length: int, edges: np.ndarray) -> str:
    """The bin in words; its first number puts it in order."""
    at = int(np.searchsorted(edges, length, side="left"))
    least = int(edges[at - 1]) + 1 if at else 0
    return f"{least} or more words" if at == len(edges) else f"{least} to {int(edges[at])} words"


def _num_turns(row: Row) -> int:
    return sum(message["role"] == "user" for message in row.messages) or 1


def _has_system(row: Row) -> bool:
    return any(message["role"] == "system" for message in row.messages)

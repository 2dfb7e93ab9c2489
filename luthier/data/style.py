"""The style of the training answers beside the wished one (data.style): one line a sign, with the share that fits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from luthier.config.data_style import StyleSpec
from luthier.text.style import Style, style_of

MAX_ROWS = 2_000


def style_profile(answers: Sequence[str], wish: StyleSpec) -> dict:
    """{"rows_measured", "signs": [{"sign", "profile", "wished", "share"}]}; share: of the answers that are as wished,
    None where nothing is. Of more than 2,000 answers every n-th is taken; {} without answers."""
    step = max(math.ceil(len(answers) / MAX_ROWS), 1)
    styles = [style_of(answer) for answer in answers[::step]]
    if not styles:
        return {}
    tests: list[tuple[str, str, str, Callable[[Style], bool] | None]] = [
        ("words", _spread([s.words for s in styles]), *_words(wish)),
        ("person", _shares([s.person for s in styles]), *_one(wish.person, lambda s: s.person == wish.person)),
        (
            "formality",
            _shares(["casual" if s.casual else "formal" for s in styles]),
            *_one(wish.formality, lambda s: s.casual == (wish.formality == "casual")),
        ),
        (
            "bullets",
            _shares(["with a list" if s.bullets else "without" for s in styles]),
            *_one(wish.bullets, lambda s: s.bullets == (wish.bullets == "always")),
        ),
        ("reading grade", _spread([s.grade for s in styles if s.grade is not None]), *_grade(wish)),
    ]
    signs = []
    for sign, profile, wished, test in tests:
        share = round(sum(map(test, styles)) / len(styles), 4) if test else None
        signs.append({"sign": sign, "profile": profile, "wished": wished, "share": share})
    return {"rows_measured": len(styles), "signs": signs}


def style_misses(profile: dict, wish: StyleSpec) -> list[str]:
    """One sentence for every sign that fewer answers show than data.style.min_share."""
    return [
        f"style: {one['share']:.0%} of the answers are as wished in {one['sign']} (wished {one['wished']}, at least "
        f"{wish.min_share:.0%}); they have {one['profile']}"
        for one in profile.get("signs", ())
        if one["share"] is not None and one["share"] < wish.min_share
    ]


def _words(wish: StyleSpec) -> tuple[str, Callable[[Style], bool] | None]:
    if wish.words is None:
        return "any", None
    least, most = wish.words
    return f"{least} to {most}", lambda style: least <= style.words <= most


def _grade(wish: StyleSpec) -> tuple[str, Callable[[Style], bool] | None]:
    most = wish.max_reading_grade
    return ("any", None) if most is None else (f"at most {most:g}", lambda s: s.grade is None or s.grade <= most)


def _one(wished: str, test: Callable[[Style], bool]) -> tuple[str, Callable[[Style], bool] | None]:
    return wished, None if wished == "any" else test


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "none"
    low, middle, high = np.quantile(values, (0.1, 0.5, 0.9))
    return f"{middle:.0f} in the middle, {low:.0f} to {high:.0f} without the outer tenths"


def _shares(values: Sequence[str]) -> str:
    return ", ".join(f"{name} {count / len(values):.0%}" for name, count in Counter(values).most_common())

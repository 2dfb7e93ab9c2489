"""How answers and topics are spread, and how many rows a task usually takes.

What: per answer field the classes, the share of the commonest and the effective number of classes (exp of the entropy);
topics as clusters of the prompts (text/topics.py: vocabulary, no neural model); distinct-n and the Vendi score. Why:
a class with three rows is not learnt, and a topic with most of the rows is learnt at the cost of the others.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from scipy import sparse

from luthier.data.items import prompt_text
from luthier.text.topics import clusters, distinct, embed, vendi_score
from luthier.types import Row

MAX_CLASSES = 100
FEW_ROWS = 5
MAX_SAMPLE = 2_000
NUM_TOPIC_TERMS = 4

VOLUME = {
    "style": (100, 500, 1_000, "tone, format, house style"),
    "domain": (1_000, 5_000, 10_000, "knowledge of a field; better 10,000 to 100,000 documents"),
    "instruction": (2_000, 5_000, 10_000, "following instructions in general"),
    "new_task": (5_000, 10_000, 10_000, "a task that the base cannot do at all"),
    "behaviour": (500, 2_000, 5_000, "when to refuse, to ask, to hand over"),
    "one_task": (500, 2_000, 5_000, "one narrow task that a good prompt nearly does"),
}
"""Kind of task -> (least rows, usual rows, good rows, what it is). Rules of thumb, not laws: the verdict measures."""
FEW_SHOT_BELOW, WARN_BELOW = 100, 500


def answer_fields(answers: Iterable[str]) -> dict[str, Counter[str]]:
    """field -> counts of its values: the fields of JSON answers if every answer is an object, else {"answer": ...}; a
    field with too many different values to be a class is left out."""
    whole: Counter[str] = Counter()
    fields: dict[str, Counter[str]] = {}
    num, are_objects = 0, True
    for num, answer in enumerate(answers, start=1):  # noqa: B007 (num is the number of answers)
        if len(whole) <= MAX_CLASSES:  # more are no classes; then nothing more is counted
            whole[answer] += 1
        values = _object(answer) if are_objects else None
        are_objects = values is not None
        for name, cell in (values or {}).items():
            counts = fields.setdefault(name, Counter())
            if len(counts) <= MAX_CLASSES:
                counts[cell] += 1
    found = fields if are_objects and fields else {"answer": whole} if num else {}
    return {name: counts for name, counts in found.items() if len(counts) <= MAX_CLASSES and num >= 3 * len(counts)}


def values_of(answer: str) -> dict[str, str]:
    """field -> value of one answer, in the same terms."""
    return _object(answer) or {"answer": answer}


def _object(answer: str) -> dict[str, str] | None:
    """field -> value of an answer that is a JSON object; None for any other."""
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    return {name: str(cell)[:60] for name, cell in value.items()} if isinstance(value, dict) else None


def label_balance(answers: Iterable[str]) -> list[dict]:
    """One record a field: classes, commonest (its share is what always answering it would score), effective, rarest."""
    records = []
    for name, counts in answer_fields(answers).items():
        total = sum(counts.values())
        (most, n_most), (least, n_least) = counts.most_common()[0], counts.most_common()[-1]
        entropy = -sum(n / total * math.log(n / total) for n in counts.values())
        records.append(
            {
                "field": name,
                "classes": len(counts),
                "effective_classes": round(math.exp(entropy), 2),
                "commonest": most[:60],
                "commonest_share": round(n_most / total, 4),
                "rarest": least[:60],
                "rarest_rows": n_least,
                "classes_under_5_rows": sum(n < FEW_ROWS for n in counts.values()),
            }
        )
    return records


def diversity(rows: Sequence[Row]) -> dict:
    """distinct_1..3, the Vendi score and the topics of the prompts, on at most 2,000 rows taken evenly."""
    step = max(math.ceil(len(rows) / MAX_SAMPLE), 1)
    texts = [prompt_text(row) for row in rows[::step]]
    if len(texts) < 3:
        return {}
    points_ND, terms, weights_NV = embed(texts)
    record = {f"distinct_{size}": round(distinct(texts, size), 4) for size in (1, 2, 3)}
    topics = []
    if terms:
        numbers = clusters(points_ND, _num_topics(len(texts)))
        for number in np.unique(numbers):
            inside = numbers == number
            topics.append({"terms": top_terms(weights_NV, inside, terms), "share": round(float(inside.mean()), 4)})
    return {
        **record,
        "vendi": round(vendi_score(points_ND), 2),
        "vendi_most": points_ND.shape[1],
        "rows_measured": len(texts),
        "topics": sorted(topics, key=lambda topic: -topic["share"]),
    }


def _num_topics(num_texts: int) -> int:
    return max(2, min(12, num_texts // 25))


def top_terms(weights_NV: sparse.csr_matrix, inside: np.ndarray, terms: list[str]) -> list[str]:
    """The terms that weigh most inside compared with everywhere."""
    here = np.asarray(weights_NV[inside].mean(axis=0)).ravel()
    everywhere = np.asarray(weights_NV.mean(axis=0)).ravel()
    ranked = np.argsort(-(here - everywhere), kind="stable")[:NUM_TOPIC_TERMS]
    return [terms[index] for index in ranked if here[index] > 0]


def volume_advice(num_train: int, task_kind: str | None) -> str:
    """What the number of training rows suggests, in one sentence; '' when there is nothing to say."""
    if num_train < FEW_SHOT_BELOW:
        return f"{num_train} training rows: under {FEW_SHOT_BELOW}, a prompt with a few examples usually does as well"
    if task_kind:
        least, usual, _, what = VOLUME[task_kind]
        if num_train < least:
            return f"{num_train:,} training rows for {task_kind} ({what}): {least:,} is the least, {usual:,} the usual"
    elif num_train < WARN_BELOW:
        return f"{num_train} training rows: most tasks take {WARN_BELOW} or more (data.checks.task_kind says which)"
    return ""


def balance_warnings(records: Sequence[dict]) -> list[str]:
    """One sentence for every field with classes too rare to be learnt."""
    return [
        f"{one['field']}: {one['classes_under_5_rows']} of {one['classes']} classes have under {FEW_ROWS} training rows"
        f" (the rarest, {one['rarest']!r}, has {one['rarest_rows']})"
        for one in records
        if one["classes_under_5_rows"]
    ]

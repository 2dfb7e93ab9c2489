"""Trivial baselines that any tune should beat: the most frequent answer, and TF-IDF + logistic regression.

JSON answers are predicted field by field, other answers as one label. A field with more than MAX_CLASSES different
values (or hardly a repeated one) is free text: there the regression falls back to the most frequent value. The penalty
is chosen on dev rows. Reported even where they win: a label that words give away needs no language model.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import optimize, sparse

from luthier.evaluate.cases import Case
from luthier.graders.grader import Task
from luthier.graders.json_fields import parse_strict
from luthier.graders.registry import figure

MAX_CLASSES = 100
MAX_TRAIN = 5_000
MAX_TERMS = 10_000
PENALTIES = (0.1, 1.0)
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Baseline:
    """`figure`: the task metric on the test cases; fields: field -> accuracy (empty unless answers are objects)."""

    name: str
    figure: float
    fields: dict[str, float]


def trivial_baselines(
    train: Sequence[Case],
    dev: Sequence[Case],
    test: Sequence[Case],
    metric: str,
    tasks: Sequence[Task] | None = None,
) -> list[Baseline]:
    """Both baselines on `test` (`tasks`: of its cases); nothing when there is no training row. Deterministic."""
    if not train or not test:
        return []
    used = sorted(train, key=lambda case: hashlib.sha256(case.id.encode()).hexdigest())[:MAX_TRAIN]
    fields = _columns([case.reference for case in used])
    if fields is None:
        columns, names = {"": [case.reference for case in used]}, []
    else:
        columns, names = fields, list(fields)
    words = TfIdf([case.question for case in used])
    x_train, x_dev, x_test = (words.rows([case.question for case in part]) for part in (used, dev, test))
    dev_columns = (_columns([case.reference for case in dev]) or {}) if names else {"": [c.reference for c in dev]}
    common = {name: [Counter(values).most_common(1)[0][0]] * len(test) for name, values in columns.items()}
    learned = {}
    for name, values in columns.items():
        counts = Counter(values)
        if not 2 <= len(counts) <= MAX_CLASSES or len(counts) * 2 > len(values):
            learned[name] = common[name]
            continue
        models = [fit_logistic(x_train, values, penalty) for penalty in PENALTIES]
        target = dev_columns.get(name, [])
        hits = [sum(map(str.__eq__, model.predict(x_dev), target)) if target else 0 for model in models]
        learned[name] = models[int(np.argmax(hits)) if target else -1].predict(x_test)
    return [
        _graded("most frequent answer", common, names, test, metric, tasks),
        _graded("TF-IDF + logistic regression", learned, names, test, metric, tasks),
    ]


def _graded(
    title: str,
    columns: dict[str, list[str]],
    names: list[str],
    test: Sequence[Case],
    metric: str,
    tasks: Sequence[Task] | None,
) -> Baseline:
    references = [case.reference for case in test]
    if not names:
        return Baseline(title, figure(metric, columns[""], references, tasks), {})
    answers = ["{" + ", ".join(f"{json.dumps(n)}: {columns[n][i]}" for n in names) + "}" for i in range(len(test))]
    truth = _columns(references) or {}
    accuracy = {
        n: float(np.mean([a == b for a, b in zip(columns[n], truth[n], strict=True)])) for n in names if n in truth
    }
    return Baseline(title, figure(metric, answers, references, tasks), accuracy)


def _columns(references: Sequence[str]) -> dict[str, list[str]] | None:
    """Field -> values as JSON text; None unless all references are JSON objects with the same fields."""
    objects = []
    for reference in references:
        try:
            value = parse_strict(reference)
        except ValueError:
            return None
        if not isinstance(value, dict) or not value or (objects and value.keys() != objects[0].keys()):
            return None
        objects.append(value)
    if not objects:
        return None
    return {
        name: [json.dumps(value[name], ensure_ascii=False, sort_keys=True) for value in objects] for name in objects[0]
    }


class TfIdf:
    """The MAX_TERMS most frequent words and word pairs (at least two texts), sublinear tf, smoothed idf, unit rows."""

    def __init__(self, texts: Sequence[str]) -> None:
        documents = [Counter(_terms(text)) for text in texts]
        frequency = Counter(term for document in documents for term in document)
        ranked = sorted(frequency, key=lambda term: (-frequency[term], term))[:MAX_TERMS]
        kept = [term for term in ranked if frequency[term] >= 2] or ranked or [""]
        self.index = {term: i for i, term in enumerate(kept)}
        self.idf = np.log((1 + len(texts)) / (1 + np.array([frequency[term] for term in kept]))) + 1

    def rows(self, texts: Sequence[str]) -> sparse.csr_matrix:
        """(len(texts), number of terms) of weights."""
        data, columns, starts = [], [], [0]
        for text in texts:
            counts = {self.index[term]: n for term, n in Counter(_terms(text)).items() if term in self.index}
            ids = np.array(sorted(counts), dtype=int)
            weights = (1 + np.log([counts[i] for i in ids])) * self.idf[ids] if len(ids) else np.zeros(0)
            data.append(weights / max(float(np.linalg.norm(weights)), 1e-12))
            columns.append(ids)
            starts.append(starts[-1] + len(ids))
        shape = (len(texts), len(self.index))
        flat = (np.concatenate([*data, np.zeros(0)]), np.concatenate([*columns, np.zeros(0, int)]), np.array(starts))
        return sparse.csr_matrix(flat, shape=shape)


def _terms(text: str) -> list[str]:
    words = _WORD.findall(text.lower())
    return words + [f"{a} {b}" for a, b in pairwise(words)]


@dataclass(frozen=True)
class Logistic:
    """A fitted multinomial logistic regression: weights (features + 1, classes), the last row is the bias."""

    classes: tuple[str, ...]
    weights: np.ndarray

    def predict(self, x: sparse.csr_matrix) -> list[str]:
        """The most likely class of every row."""
        return [self.classes[i] for i in np.argmax(x @ self.weights[:-1] + self.weights[-1], axis=1)]


def fit_logistic(x: sparse.csr_matrix, labels: Sequence[str], penalty: float) -> Logistic:
    """Minimise the summed cross entropy + penalty / 2 * squared weights (no penalty on the bias) by L-BFGS."""
    classes = tuple(sorted(set(labels)))
    index = {label: i for i, label in enumerate(classes)}
    target = np.zeros((len(labels), len(classes)))
    target[np.arange(len(labels)), [index[label] for label in labels]] = 1
    shape = (x.get_shape()[1] + 1, len(classes))

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(shape)
        logits = x @ weights[:-1] + weights[-1]
        logits -= logits.max(axis=1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        error = np.exp(log_p) - target
        gradient = np.vstack([x.T @ error + penalty * weights[:-1], error.sum(axis=0, keepdims=True)])
        value = -(target * log_p).sum() + penalty / 2 * (weights[:-1] ** 2).sum()
        return float(value), gradient.ravel()

    fitted = optimize.minimize(
        loss, np.zeros(shape[0] * shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 100}
    )
    return Logistic(classes, fitted.x.reshape(shape))

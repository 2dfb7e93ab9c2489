"""Overlap of free text: ROUGE-L (rouge-score) and corpus BLEU (sacrebleu).

rouge-score tokenises for English only: other scripts score 0 there, so for them BLEU or token F1 is the better choice.
Per-item BLEU statistics are sacrebleu's own counts; their sums give exactly its corpus score, here on the scale 0..1.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from sacrebleu.metrics.bleu import BLEU

from luthier.graders.grader import Task

_BLEU = BLEU(effective_order=True)
_CORPUS = BLEU()
ORDER = 4


@cache
def _rouge() -> Any:
    """Made on first use: rouge-score brings in nltk and all that belongs to it, over a second of every start."""
    return importlib.import_module("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=True)


def rouge_l(answer: str, reference: str, task: Task | None = None) -> float:
    """F-measure of the longest common subsequence of (stemmed) words."""
    return float(_rouge().score(reference, answer)["rougeL"].fmeasure)


def bleu_counts(answer: str, reference: str, task: Task | None = None) -> list:
    """[answer length, reference length, 4 matched and 4 possible n-gram counts]: an item of BLEU."""
    score = _BLEU.sentence_score(answer, [reference])
    return [int(score.sys_len), int(score.ref_len), *map(int, score.counts), *map(int, score.totals)]


def bleu_stats(items: Sequence[list]) -> np.ndarray:
    """(n, 10) additive counts."""
    return np.asarray(items, float)


def bleu(sums: np.ndarray) -> np.ndarray:
    """Sums of `bleu_stats` (..., 10) -> corpus BLEU / 100 (...)."""
    flat = np.asarray(sums).reshape(-1, 2 + 2 * ORDER)
    values = [_corpus_bleu(row) for row in flat]
    return np.asarray(values).reshape(np.shape(sums)[:-1])


def _corpus_bleu(counts: np.ndarray) -> float:
    whole = [round(x) for x in counts]
    result = _CORPUS.compute_bleu(
        correct=whole[2 : 2 + ORDER], total=whole[2 + ORDER :], sys_len=whole[0], ref_len=whole[1], smooth_method="exp"
    )
    return result.score / 100

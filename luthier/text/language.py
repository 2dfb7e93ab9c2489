"""Which language a text is in.

What: py3langid (97 languages, naive Bayes on byte n-grams, model inside the wheel: nothing is downloaded). Under
MIN_LETTERS letters, or where the model is unsure, the answer is "und": short tickets are guessed badly by every model.
Why its automaton is walked here: the library takes one text at a time, a byte a step of Python; a chunk of texts walks
together, a byte of every text a step of numpy. The scores are the library's but for the last bits of a sum.
Source: M. Lui and T. Baldwin, "langid.py" (2012); A. Barbaresi, py3langid.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from py3langid.langid import MODEL_FILE, LanguageIdentifier
from scipy.sparse import csr_matrix

UNKNOWN = "und"
MIN_LETTERS = 24
MIN_CONFIDENCE = 0.7
TEXTS_AT_ONCE = 1024
_MAX_CHARS = 600


@dataclass(frozen=True)
class _Model:
    """The automaton over bytes (S states, some share a row of moves) and the classifier (F features, C classes).
    moves: next state by row start + byte; row_S: where the row of a state starts; feature_S: -1 where a state says
    nothing; weight_FC, prior_C: log-probabilities; same: pairs of classes that are one language."""

    moves: np.ndarray
    row_S: np.ndarray
    feature_S: np.ndarray
    weight_FC: np.ndarray
    prior_C: np.ndarray
    labels: tuple[str, ...]
    same: tuple[tuple[int, int], ...]


@lru_cache(maxsize=1)
def _model() -> _Model:
    found = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    first = {label: place for place, label in reversed(list(enumerate(found.nb_classes)))}
    return _Model(
        np.asarray(found.tk_nextmove, dtype=np.int32),
        np.asarray(found.tk_row, dtype=np.int32) << 8,
        np.asarray(found.tk_output, dtype=np.int32),
        np.asarray(found.nb_ptc, dtype=np.float32),
        np.asarray(found.nb_pc, dtype=np.float32),
        tuple(found.nb_classes),
        tuple((first[label], place) for place, label in enumerate(found.nb_classes) if first[label] != place),
    )


def languages() -> frozenset[str]:
    """The codes that `identify` can answer."""
    return frozenset(_model().labels)


def identify(texts: Sequence[str]) -> list[str]:
    """ISO 639-1 code of the language of each text, or "und" where it cannot be told. Reads the first 600 characters;
    what a text gets does not depend on the others."""
    found = [UNKNOWN] * len(texts)
    heads = [text[:_MAX_CHARS] for text in texts]
    long = [index for index, head in enumerate(heads) if sum(map(str.isalpha, head)) >= MIN_LETTERS]
    for first in range(0, len(long), TEXTS_AT_ONCE):
        some = long[first : first + TEXTS_AT_ONCE]
        for index, language in zip(some, _classified([_encoded(heads[index]) for index in some]), strict=True):
            found[index] = language
    return found


def _encoded(text: str) -> bytes:
    """The bytes that the model was trained on."""
    text = text if text.isascii() else unicodedata.normalize("NFC", text)
    return (text.lower() if text.isupper() else text).encode("utf-8", "surrogatepass")


def _classified(texts: Sequence[bytes]) -> list[str]:
    model = _model()
    size_N = np.array([len(text) for text in texts])
    counts_NF = csr_matrix(_features(texts, size_N), shape=(len(texts), len(model.weight_FC)))
    counts_NF.data = np.log1p(counts_NF.data)
    score_NC = counts_NF @ model.weight_FC + model.prior_C
    score_NC[np.diff(counts_NF.indptr) == 0] = 0  # no feature: every language as likely
    score_NC /= np.sqrt(size_N, dtype=np.float32)[:, None]  # the model's temperature: as sure of long texts as of short
    chance_NC = np.exp(score_NC - score_NC.max(axis=1, keepdims=True))
    chance_NC /= chance_NC.sum(axis=1, keepdims=True)
    for kept, other in model.same:
        chance_NC[:, kept] += chance_NC[:, other]
        chance_NC[:, other] = 0
    best_N = chance_NC.argmax(axis=1)
    is_sure_N = chance_NC[np.arange(len(texts)), best_N] >= MIN_CONFIDENCE
    return [
        model.labels[best] if sure else UNKNOWN for best, sure in zip(best_N.tolist(), is_sure_N.tolist(), strict=True)
    ]


def _features(texts: Sequence[bytes], size_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(counts, features, starts of the texts' features): a sparse matrix by rows, features ascending."""
    model, num_features = _model(), len(_model().weight_FC)
    order = np.argsort(-size_N, kind="stable")  # longest first: the texts that still have a byte stand in front
    byte_PN = np.zeros((int(size_N.max()), len(texts)), dtype=np.int32)
    for column, text in enumerate(order.tolist()):
        byte_PN[: size_N[text], column] = np.frombuffer(texts[text], dtype=np.uint8)
    num_left_P = np.searchsorted(-size_N[order], -np.arange(len(byte_PN)), side="left")
    row_N, found = np.zeros(len(texts), dtype=np.int32) + model.row_S[0], []
    for byte_N, num_left in zip(byte_PN, num_left_P.tolist(), strict=True):
        state = model.moves[row_N[:num_left] + byte_N[:num_left]]
        row_N = model.row_S[state]
        feature = model.feature_S[state]
        says = np.flatnonzero(feature >= 0)
        found.append(order[says] * num_features + feature[says])
    keys, counts = np.unique(np.concatenate(found), return_counts=True)
    starts = np.searchsorted(keys, np.arange(len(texts) + 1) * num_features)
    return counts.astype(np.float32), keys % num_features, starts

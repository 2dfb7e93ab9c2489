"""Which language a text is in.

What: py3langid (97 languages, naive Bayes on byte n-grams, model inside the wheel: nothing is downloaded). Under
MIN_LETTERS letters, or where the model is unsure, the answer is "und": short tickets are guessed badly by every model.
Source: M. Lui and T. Baldwin, "langid.py" (2012); A. Barbaresi, py3langid.
"""

from __future__ import annotations

from functools import lru_cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

UNKNOWN = "und"
MIN_LETTERS = 24
MIN_CONFIDENCE = 0.7
_MAX_CHARS = 600


@lru_cache(maxsize=1)
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def languages() -> frozenset[str]:
    """The codes that `identify` can answer."""
    return frozenset(_identifier().labels)


def identify(text: str) -> str:
    """ISO 639-1 code of the text's language, or "und" when it cannot be told. Reads the first 600 characters."""
    head = text[:_MAX_CHARS]
    if sum(map(str.isalpha, head)) < MIN_LETTERS:
        return UNKNOWN
    language, confidence = _identifier().classify(head)
    return language if confidence >= MIN_CONFIDENCE else UNKNOWN

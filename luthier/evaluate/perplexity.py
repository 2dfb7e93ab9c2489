"""Is general English forgotten? Bits per byte of base and tune on a frozen sample of short general texts.

Bits per byte, not per token, so that models with different tokenizers compare. The sample (`general.txt`, one document
a line, written for this project) is part of the package: the same for every run, and no one's training data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from luthier.errors import EvaluateError
from luthier.types import Scorer


@dataclass(frozen=True)
class Document:
    """One text: negative log-likelihoods in nats under base and tune, and its size."""

    id: str
    base_nats: float
    tuned_nats: float
    num_bytes: int


def general_texts() -> list[str]:
    """The frozen sample: over 200 documents of one to three sentences."""
    text = resources.files("luthier.evaluate").joinpath("general.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip()]


def score_documents(base: Scorer, tuned: Scorer, texts: Sequence[str]) -> list[Document]:
    """Score every text with both models. EvaluateError when a scorer's answers do not belong to the texts."""
    pairs = (base.score_texts(texts), tuned.score_texts(texts))
    documents = []
    for index, text in enumerate(texts):
        (base_logp, base_bytes), (tuned_logp, tuned_bytes) = (side[index] for side in pairs)
        if base_bytes != tuned_bytes or base_bytes <= 0:
            raise EvaluateError(
                f"general text {index + 1}: the scorers counted {base_bytes} and {tuned_bytes} bytes for {text[:40]!r}",
                hint="both scorers must score the same texts, in UTF-8 bytes",
            )
        documents.append(Document(f"general-{index + 1}", -float(base_logp), -float(tuned_logp), int(base_bytes)))
    return documents

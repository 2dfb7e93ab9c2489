"""samples.jsonl: everything a verdict rests on, in one file that can be replayed anywhere.

Line 1 is the header (policy, arms, prompts, digests, what the report needs); then one `case` line a question, one
`sample` line an arm and case, one `document` line a general text. The header counts the lines, so a torn file is
refused. No time, path or machine is in it: the same evaluation gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from luthier.errors import EvaluateError
from luthier.evaluate.perplexity import Document
from luthier.graders.grader import Item
from luthier.store.publish import write_atomic

SCHEMA_VERSION = 1
ARMS = ("base", "prompt", "tuned")
SPLITS = ("test", "unlabelled")
_TEXTS = {
    "case": ("split", "id", "group", "question", "reference"),
    "sample": ("arm", "split", "id", "group", "prompt", "answer", "reference", "finish"),
    "document": ("id",),
}


@dataclass(frozen=True)
class Question:
    """A case as the file keeps it. `split` is "test" or "unlabelled"."""

    split: str
    id: str
    group: str
    question: str
    reference: str


@dataclass(frozen=True)
class Sample:
    """One arm's answer to one case. scores: metric -> item.

    problem: what is wrong with the format; '' when nothing is, None when it was not checked.
    """

    arm: str
    split: str
    id: str
    group: str
    prompt: str
    answer: str
    reference: str
    finish: str
    scores: dict[str, Item] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class Samples:
    """A whole evaluation. `digest`: sha256 of the file it was read from or written to."""

    header: dict[str, Any]
    questions: tuple[Question, ...]
    samples: tuple[Sample, ...]
    documents: tuple[Document, ...] = ()
    digest: str = ""

    def of(self, arm: str, split: str = "test") -> dict[str, Sample]:
        """Case id -> sample of one arm."""
        return {sample.id: sample for sample in self.samples if sample.arm == arm and sample.split == split}

    def asked(self, split: str = "test") -> list[Question]:
        """The questions of one split, in order."""
        return [question for question in self.questions if question.split == split]


def _finite(value: Any) -> Any:
    """NaN and infinities as None, at any depth: the file stays strict JSON, and None fails closed when judged."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def write_samples(path: Path, samples: Samples) -> Samples:
    """Write the file atomically; returns the samples as they will be read back (digest and line count filled in)."""
    lines = [{"kind": "case", **asdict(question)} for question in samples.questions]
    lines += [{"kind": "sample", **asdict(sample)} for sample in samples.samples]
    lines += [{"kind": "document", **asdict(document)} for document in samples.documents]
    header = {**samples.header, "kind": "header", "schema_version": SCHEMA_VERSION, "num_lines": len(lines) + 1}
    text = "".join(
        json.dumps(_finite(line), sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
        for line in [header, *lines]
    )
    write_atomic(path, text)
    return read_samples(path)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _check_record(kind: str, record: dict[str, Any], seen: set[tuple[Any, ...]]) -> None:
    """ValueError for a line that no evaluation writes. seen: of the lines before; an answer counts once, and only to a
    question that was asked."""
    wrong = [name for name in _TEXTS[kind] if not isinstance(record.get(name), str)]
    if kind == "sample":
        wrong += [] if isinstance(record.get("scores"), dict) else ["scores"]
        wrong += [] if isinstance(record.get("problem", ""), str | None) else ["problem"]
    wrong += ["split"] if kind != "document" and record["split"] not in SPLITS else []
    wrong += ["arm"] if kind == "sample" and record["arm"] not in ARMS else []
    if wrong:
        raise ValueError(f"its {wrong[0]} is {record.get(wrong[0])!r}")
    key = (kind, record.get("arm"), record.get("split"), record["id"])
    if key in seen:
        raise ValueError(f"the {kind} {record['id'][:12]!r} stands twice")
    if kind == "sample" and ("case", None, *key[2:]) not in seen:
        raise ValueError(f"it answers {record['id'][:12]!r}, which was not asked")
    seen.add(key)


def read_samples(path: Path) -> Samples:
    """Read a samples file; EvaluateError with file:line when it is torn, foreign or of another version."""
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise EvaluateError(
            f"cannot read {path}: {error.strerror}", hint="give the samples.jsonl of an evaluation"
        ) from error
    if not raw.strip():
        raise EvaluateError(f"{path}: the file is empty", hint="give the samples.jsonl of an evaluation")
    lines = raw.decode("utf-8", errors="replace").split("\n")[:-1]
    header: dict[str, Any] = {}
    kinds: dict[str, list[Any]] = {"case": [], "sample": [], "document": []}
    makers = {"case": Question, "sample": Sample, "document": Document}
    seen: set[tuple[Any, ...]] = set()
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line, parse_constant=_refuse_constant)
            kind = record.pop("kind")
            if number == 1 and kind == "header":
                header = record
            else:
                made = makers[kind](**record)
                _check_record(kind, record, seen)
                kinds[kind].append(made)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise EvaluateError(
                f"{path}:{number}: not a line of samples.jsonl ({error})", hint="evaluate again"
            ) from error
    if header.get("schema_version") != SCHEMA_VERSION or header.get("num_lines") != len(lines):
        raise EvaluateError(
            f"{path}: {len(lines)} lines of version {header.get('schema_version')}, but its header promises "
            f"{header.get('num_lines')} and this luthier reads version {SCHEMA_VERSION}",
            hint="the file is torn or from another version: evaluate again",
        )
    questions, samples, documents = (tuple(kinds[kind]) for kind in makers)
    return Samples(header, questions, samples, documents, hashlib.sha256(raw).hexdigest())

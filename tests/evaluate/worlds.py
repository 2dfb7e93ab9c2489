"""Small deterministic inputs: samplers that answer by rule, and samples built without any sampler."""

import hashlib
import json

import numpy as np

from luthier.evaluate.cases import Case
from luthier.evaluate.perplexity import Document
from luthier.evaluate.policy import Policy
from luthier.evaluate.samples import Question, Sample, Samples
from luthier.types import Completion, Message

SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}, "size": {"type": "integer", "minimum": 1, "maximum": 3}},
    "required": ["colour", "size"],
    "additionalProperties": False,
}


def gold(i):
    return json.dumps({"colour": ["red", "blue"][i % 2], "size": i % 3 + 1})


def make_cases(first, count, system="Fill in colour and size."):
    """Cases i with question "item i"; the right answer follows from i."""
    return [
        Case(
            f"id{i}",
            f"g{i}",
            (Message(role="system", content=system), Message(role="user", content=f"item {i}")),
            gold(i),
        )
        for i in range(first, first + count)
    ]


def chance(*key):
    """A number in [0, 1) that depends on the key only."""
    return int(hashlib.sha256(repr(key).encode()).hexdigest()[:12], 16) / 16**12


class RuleSampler:
    """Answers item i rightly with probability rate(messages), reproducibly; `wrong` is what it says otherwise."""

    def __init__(self, name, rate, wrong='{"colour": "red", "size": 9}'):
        self.name, self.rate, self.wrong, self.num_asked = name, rate, wrong, 0

    def sample(self, prompts, *, max_new_tokens, temperature=0.0, seed=0, progress=None):
        self.num_asked += len(prompts)
        answers = []
        for messages in prompts:
            i = int(messages[-1]["content"].split()[-1])
            key = (self.name, i, seed if temperature else 0)
            answers.append(gold(i) if chance(*key) < self.rate(messages) else self.wrong)
        return [Completion(text, (), "stop") for text in answers]


class RuleScorer:
    """bits: bits per byte of plain text; a little noise per document."""

    def __init__(self, bits):
        self.bits = bits

    def score(self, pairs):
        return [[-0.5 * self.bits] * len(answer) for _, answer in pairs]

    def score_texts(self, texts):
        sizes = [len(text.encode()) for text in texts]
        return [(-self.bits * n * np.log(2) * (1 + 0.02 * chance(t)), n) for t, n in zip(texts, sizes, strict=True)]


def make_samples(
    tuned, prompt, base, *, policy=None, groups=None, tuned_nats=100.0, valid=True, num_extra=300, **header
):
    """Samples with binary exact_match scores; `tuned_nats` against 100 nats of base on 60 documents."""
    n = len(tuned)
    policy = policy or Policy(metric="exact_match", max_failure_rate=0.03)
    names = groups if groups is not None else [f"g{i}" for i in range(n)]
    questions = [Question("test", f"c{i}", names[i], f"q{i}", "right") for i in range(n)]
    questions += [Question("unlabelled", f"u{i}", f"u{i}", f"v{i}", "") for i in range(num_extra)]
    samples = []
    for arm, scores in (("base", base), ("prompt", prompt), ("tuned", tuned)):
        for i, score in enumerate(scores):
            answer = "right" if score else "wrong"
            scored = {"exact_match": float(score)}
            samples.append(
                Sample(
                    arm, "test", f"c{i}", names[i], f"{arm}{i}", answer, "right", "stop", scored, "" if valid else "no"
                )
            )
    for arm in ("prompt", "tuned"):
        samples += [
            Sample(arm, "unlabelled", f"u{i}", f"u{i}", f"{arm}u{i}", "x", "", "stop", {}, "" if valid else "not JSON")
            for i in range(num_extra)
        ]
    documents = [Document(f"d{i}", 100.0 + i % 7, tuned_nats + i % 7, 80) for i in range(60)]
    header = {"policy": policy.as_json(), "data": {"num_test": n}, **header}
    return Samples(header, tuple(questions), tuple(samples), tuple(documents))

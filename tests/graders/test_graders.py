"""Graders against independent references and hand-made traps. One row a metric in MATRIX: a new grader adds its row."""

import json

import numpy as np
import pytest
import sacrebleu

from luthier.config.evaluate import Metric
from luthier.config.graders import GradersSpec, NumericSpec, RegexSpec, UnitTestsSpec
from luthier.errors import EvaluateError
from luthier.graders.exact import exact_match
from luthier.graders.grader import Task
from luthier.graders.json_fields import field_hits, parse_strict, problem, same_json
from luthier.graders.registry import GRADERS, figure, grade, grader

GOLD = '{"topic": "billing", "urgency": 2}'
SCHEMA = {
    "type": "object",
    "properties": {"topic": {"enum": ["billing", "usage"]}, "urgency": {"type": "integer"}},
    "required": ["topic", "urgency"],
    "additionalProperties": False,
}
MATRIX = {  # name: (perfect answer, wrong answer, reference)
    "exact_match": (" Paris\n", "paris", "Paris"),
    "token_f1": ("the Eiffel tower!", "a bridge", "Eiffel Tower"),
    "accuracy": ("Card_Arrival.", "card", "card_arrival"),
    "macro_f1": ("yes", "no", "yes"),
    "json_exact": ('{"urgency": 2, "topic": "billing"}', GOLD + " done", GOLD),
    "json_field_accuracy": (GOLD, "{}", GOLD),
    "rouge_l": ("the cat sat", "xylophone", "The cat sat."),
    "bleu": ("the cat sat on the mat", "nothing alike at all here", "the cat sat on the mat"),
    "json_valid": (GOLD, GOLD + " done", "anything"),
    "numeric": ("so 3 x 14 is\n#### 42", "42 x 2 = 84", "#### 42"),
    "regex": ("I am sure. Answer: B", "Answer: C", "Answer: B"),
    "unit_tests": ("Here:\n```python\ndef add(a, b):\n    return a + b\n```", "def add(a, b): return 3", "add"),
}
TASKS = {
    "regex": Task(options=GradersSpec(regex=RegexSpec(pattern=r"Answer: (\w)"))),
    "unit_tests": Task(columns={"tests": ["assert add(1, 2) == 3", "assert add(2, 2) == 4"]}),
}


@pytest.mark.parametrize("name", GRADERS)
def test_perfect_is_one_and_wrong_is_zero(name):
    perfect, wrong, reference = MATRIX[name]
    task = TASKS.get(name, Task())
    assert figure(name, [perfect] * 3, [reference] * 3, [task] * 3) == pytest.approx(1.0)
    assert figure(name, [wrong] * 3, [reference] * 3, [task] * 3) == pytest.approx(0.0, abs=0.06)
    assert figure(name, [""] * 3, [reference] * 3, [task] * 3) == pytest.approx(0.0)
    json.dumps(grade(name, perfect, reference, task), allow_nan=False)


def test_registry_and_config_name_the_same_metrics():
    assert set(GRADERS) == set(Metric.__args__) == set(MATRIX)
    with pytest.raises(EvaluateError, match="no metric 'f1'"):
        grader("f1")
    assert np.isnan(GRADERS["exact_match"].figure([]))


def test_exact_match_loose():
    assert exact_match("The Eiffel-Tower", "eiffeltower", loose=True) == 1.0
    assert exact_match("e\u0301", "\u00e9") == 1.0


def test_token_f1_by_hand():
    assert grade("token_f1", "blue big cat", "the big dog") == pytest.approx(2 * 1 / (3 + 2))
    assert grade("token_f1", "cat cat", "cat") == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 2}',
        '{"a": NaN}',
        "[Infinity]",
        '{"a": 1} {"b": 2}',
        '```json\n{"a": 1}\n```',
        "",
        "{'a': 1}",
        "[" * 99_999,
    ],
)
def test_strict_parse_refuses(text):
    with pytest.raises(ValueError):
        parse_strict(text)
    assert problem(text).startswith("not JSON")


def test_schema_validity_and_joint_match():
    assert problem(GOLD, SCHEMA) == "" and grade("json_exact", GOLD, GOLD, Task(SCHEMA)) == 1.0
    assert "urgency" in problem('{"topic": "billing", "urgency": "2"}', SCHEMA)
    assert "topic" in problem('{"topic": "refund", "urgency": 2}', SCHEMA)
    assert grade("json_exact", '{"topic": "usage", "urgency": 2}', GOLD, Task(SCHEMA)) == 0.0
    with pytest.raises(EvaluateError, match="not valid"):
        problem(GOLD, {"type": 12})


def test_fields():
    assert field_hits('{"topic": "usage", "urgency": 2.0}', GOLD) == {"topic": False, "urgency": True}
    assert field_hits("broken", GOLD) == {"topic": False, "urgency": False}
    assert field_hits("[1]", GOLD) == {"topic": False, "urgency": False}
    assert grade("json_field_accuracy", '{"urgency": 2}', GOLD) == 0.5
    for reference in ("plain", "{}", "[1]"):
        with pytest.raises(EvaluateError):
            field_hits(GOLD, reference)


def test_json_equality_has_no_python_surprises():
    assert same_json({"a": [1, {"b": None}]}, {"a": [1.0, {"b": None}]})
    for left, right in (
        (1, True),
        (0, False),
        ("1", 1),
        ([1], [1, 2]),
        ({"a": None}, {}),
        (None, False),
        ([True], [1]),
    ):
        assert not same_json(left, right) and not same_json(right, left)


def test_macro_f1_equals_a_plain_computation():
    rng = np.random.default_rng(0)
    true = rng.choice(["a", "b", "c"], 200, p=[0.6, 0.3, 0.1])
    given = np.where(rng.random(200) < 0.6, true, rng.choice(["a", "b", "zzz"], 200))
    scores = []
    for label in "abc":
        hit = ((true == label) & (given == label)).sum()
        scores.append(2 * hit / ((true == label).sum() + (given == label).sum()))
    assert figure("macro_f1", list(given), list(true)) == pytest.approx(np.mean(scores))


def test_bleu_equals_sacrebleu():
    answers = ["the cat sat on a mat", "hello there world", "a b c d e f g", ""]
    references = ["the cat sat on the mat", "hello world", "a b c d e g f", "something"]
    assert figure("bleu", answers, references) == pytest.approx(
        sacrebleu.corpus_bleu(answers, [references]).score / 100
    )

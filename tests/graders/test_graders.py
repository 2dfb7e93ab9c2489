"""Graders against independent references and hand-made traps. One row a metric in MATRIX: a new grader adds its row."""

import json
import math
import os
import re
import time
from decimal import Decimal

import numpy as np
import pytest
import sacrebleu
from pydantic import ValidationError

from luthier.config.evaluate import Metric
from luthier.config.graders import GradersSpec, GroundedSpec, NumericSpec, RegexSpec, UnitTestsSpec
from luthier.errors import EvaluateError
from luthier.graders.exact import exact_match
from luthier.graders.grader import Task
from luthier.graders.grounded import ungrounded, unsaid
from luthier.graders.guard import GuardedReward
from luthier.graders.json_fields import field_hits, parse_strict, problem, same_json
from luthier.graders.numeric import final_number
from luthier.graders.registry import GRADERS, figure, grade, grader
from luthier.graders.unit_tests import code_in

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
    "grounded": ("We sent it on 3 March.", "We sent it on 4 March.", "We sent it on 3 March."),
    "all_of": ("It left on 3 March. Bye", "It left on 3 March.", "It left on 3 March. Bye"),
    "unit_tests": ("Here:\n```python\ndef add(a, b):\n    return a + b\n```", "def add(a, b): return 3", "add"),
}
PROMPT = ({"role": "user", "content": "Order 48213 for Ann left on 3 March with Northline, due 6 April."},)
TASKS = {
    "grounded": Task(prompt=PROMPT),
    "all_of": Task(options=GradersSpec(all_of=("grounded", "regex"), regex=RegexSpec(pattern="Bye")), prompt=PROMPT),
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


# numbers


@pytest.mark.parametrize(
    "text, number",
    [
        ("It is 18.", "18"),
        ("first 5, then 7\n#### 1,234.50 dollars, not 9", "1234.50"),
        ("#### -3", "-3"),
        (r"so \boxed{2} or rather \boxed{ 0.5 } of 9", "0.5"),
        ("$1,000,000 (3-4%)", "4"),
        ("a \u22127 b", "-7"),
        ("1.5e3 is large", "1500"),
        (".25", "0.25"),
        ("v2 and x18", None),
        ("####", None),
        ("", None),
    ],
)
def test_the_final_number(text, number):
    assert final_number(text) == (None if number is None else Decimal(number))


def test_numbers_agree_within_the_tolerance():
    def right(answer, reference, **options):
        return grade("numeric", answer, reference, Task(options=GradersSpec(numeric=NumericSpec(**options))))

    assert right("42.0", "#### 42") == 1.0 and right("42.1", "#### 42") == 0.0
    assert right("42.1", "42", tolerance=0.1) == 1.0 and right("42.11", "42", tolerance=0.1) == 0.0
    assert right("990", "1000", relative_tolerance=0.01) == 1.0 and right("989", "1000", relative_tolerance=0.01) == 0.0
    assert right("no idea", "42", tolerance=100) == 0.0 and right("0.30", "0.3") == 1.0
    with pytest.raises(EvaluateError, match="holds no number"):
        right("42", "forty-two")


# patterns


def of_pattern(pattern, timeout_s=2.0):
    return Task(options=GradersSpec(regex=RegexSpec(pattern=pattern, timeout_s=timeout_s)))


def test_patterns_with_and_without_a_group():
    assert grade("regex", "<think>x</think> 4", "", of_pattern(r"^<think>.*?</think>")) == 1.0
    assert grade("regex", "4", "", of_pattern(r"^<think>.*?</think>")) == 0.0
    last = of_pattern(r"answer is (\w+)")
    assert grade("regex", "the answer is a ... the answer is b", "answer is b", last) == 1.0
    assert grade("regex", "the answer is b ... the answer is a", "answer is b", last) == 0.0
    assert GRADERS["regex"].problems(["answer is b", "b"], [last, last])[0] == ""
    assert "does not match" in GRADERS["regex"].problems(["answer is b", "b"], [last, last])[1]
    with pytest.raises(EvaluateError, match="no pattern"):
        grade("regex", "a", "a")
    with pytest.raises(ValidationError, match="not a regular expression"):
        RegexSpec(pattern="(")


def test_a_pattern_that_searches_for_ever_costs_one_answer():
    slow = of_pattern(r"^(a+)+$", timeout_s=0.3)
    started = time.monotonic()
    answers = ["a" * 40 + "!", "aaa"]
    assert GRADERS["regex"].items(answers, ["aaa"] * 2, [slow] * 2) == [0.0, 1.0]
    assert time.monotonic() - started < 5


# grounding

FACTS = (
    "You answer for Tarn & Wick.\nOrder 48213: two Fell lamps at £64.00 and a 25% deposit, sent 3 March with Northline "
    "(parcel NL4821), due 2026-04-06. Returns within 14 days; 1,250 hours of light.\nCustomer: it's Zoë, from Leeds."
)


@pytest.mark.parametrize(
    "answer",
    [
        "Hello Zoë, your 2 Fell lamps left on 3 March. Next, look up parcel NL4821. Kind regards, Tarn & Wick",
        "They are due on 6 April, that is April 6th, or 2026-04-06.",
        "It cost £64 (64.0 in all), and the deposit is 25%.",
        "You have fourteen days, and Northline's van brings both.",
        "It gives 1250 hours.\n1. Fill it.\n2. Light it.\n- Trim it. I would, and one may: Everything else waits.",
        "“Wait,” we say. (Never run it dry.)",
    ],
)
def test_what_the_prompt_holds_is_grounded(answer):
    assert ungrounded(answer, FACTS) == []


@pytest.mark.parametrize(
    "answer, claims",
    [
        ("Order 48312 left us.", ["48312"]),
        ("It left on 4 March.", ["4 Mar"]),
        ("It left on 3 April.", ["3 Apr"]),  # both words stand in the prompt, the date does not
        ("It is due on 2026-03-06.", ["6 Mar"]),
        ("It costs £14.", ["£14"]),  # 14 days are no price
        ("It costs £64.50.", ["£64.5"]),
        ("A 14% deposit.", ["14%"]),
        ("You have twenty-one days.", ["21"]),
        ("It gives 125 hours.", ["125"]),
        ("Hello Mia, we posted it.", ["mia"]),
        ("We sent it with Penny Post on Monday.", ["monday", "penny", "post"]),
        ("Look up parcel NL4812.", ["4812", "nl4812"]),
    ],
)
def test_what_the_prompt_does_not_hold_is_named(answer, claims):
    assert ungrounded(answer, FACTS) == claims
    assert ungrounded(answer, FACTS + answer) == []


def test_earlier_turns_ground_an_answer_and_its_own_words_do_not():
    turns = [("user", "My order is 771."), ("assistant", "It left on 5 May."), ("user", "When will it come?")]
    task = Task(prompt=tuple({"role": role, "content": text} for role, text in turns))
    assert grade("grounded", "Order 771 left on 5 May.", "", task) == 1.0
    assert grade("grounded", "Order 772 left on 5 May.", "Order 772 left on 5 May.", task) == 0.0


def test_key_facts_must_be_said():
    assert unsaid("It is due within 14 days; all of it.", ["14 days", "Due within"]) == []
    assert unsaid("within 14 days", ["4 days"]) == ["4 days"] and unsaid("two days", ["2 days"]) == []
    assert unsaid("£6.50 for 5 days", ["£6.5", "£6.50"]) == ["£6.5"]

    def task(**columns):
        return Task(columns=columns, options=GradersSpec(grounded=GroundedSpec(must_say="key")), prompt=PROMPT)

    assert grade("grounded", "It is due on 6 April.", "", task(key="6 April")) == 1.0
    assert grade("grounded", "It left on 3 March.", "", task(key=["6 April"])) == 0.0  # true, and not what was asked
    assert grade("grounded", "It left on 3 March.", "", task(key=[])) == 1.0
    for key in (None, 6, [6]):
        with pytest.raises(EvaluateError, match="no key facts in its column 'key'"):
            grade("grounded", "It left on 3 March.", "", task(key=key))
    wrong = GRADERS["grounded"].problems(["Due on 6 April.", "Due.", "Due on 7 April.", " "], [task(key="6 April")] * 4)
    assert wrong[0] == "" and "does not say '6 April'" in wrong[1] and "7 Apr" in wrong[2] and "empty" in wrong[3]


def test_names_are_claims_only_where_that_is_wanted():
    german = "Wir senden die Lampe mit der Post."
    options = GradersSpec(grounded=GroundedSpec(names=False))
    prompt = ({"role": "user", "content": "Wo ist sie?"},)
    assert grade("grounded", german, "", Task(prompt=prompt)) == 0.0
    assert grade("grounded", german, "", Task(prompt=prompt, options=options)) == 1.0


# several at once


def test_all_of_asks_every_part():
    task = TASKS["all_of"]
    for answer, right in {
        "It left on 3 March. Bye": 1.0,
        "Bye": 1.0,
        "It left on 3 March.": 0.0,
        "4 May. Bye": 0.0,
    }.items():
        assert grade("all_of", answer, "", task) == right
    why = GRADERS["all_of"].problems(["Bye", "It left on 5 March. Bye", "Due."], [task] * 3)
    assert why[0] == "" and why[1].startswith("grounded: ") and why[2].startswith("regex: ")
    graded = Task(options=GradersSpec(all_of=("token_f1",)))
    assert grade("all_of", "a big cat", "big cat", graded) == 1.0 and grade("all_of", "cat", "big cat", graded) == 0.0
    with pytest.raises(EvaluateError, match="has no parts"):
        grade("all_of", "a", "a")
    with pytest.raises(ValidationError):
        GradersSpec(all_of=("bleu",))


# rewards behind a guard


def _odd_reward(answer, reference, task):
    if answer == "hang":
        return sum(1 for _ in iter(int, 1))
    if answer == "hang in C":
        return re.match(r"^(a+)+$", "a" * 64 + "!")
    if answer == "leave":
        os._exit(3)
    if answer == "exit":
        raise SystemExit(0)
    return {"nan": math.nan, "inf": -math.inf, "none": None, "text": "1", "true": True, "numpy": np.float32(0.5)}.get(
        answer, len(answer) / 0 if answer == "raise" else float(len(answer))
    )


def test_a_reward_that_raises_hangs_or_gives_no_number_costs_one_sample():
    guarded = GuardedReward(_odd_reward, time_limit_s=1.0)
    expected = {
        "abc": 3.0,
        "raise": "ZeroDivisionError",
        "nan": "it gave nan",
        "inf": "it gave -inf",
        "none": "a NoneType, not a number",
        "text": "a str, not a number",
        "hang": "no answer within 1 s",
        "ab": 2.0,
        "hang in C": "no answer within 1 s",
        "leave": "exit code 3",
        "exit": "SystemExit",
        "true": 1.0,
        "numpy": 0.5,
    }
    for answer, wanted in expected.items():
        reward = guarded(answer)
        if isinstance(wanted, float):
            assert reward.value == wanted and reward.error == "", answer
        else:
            assert reward.value is None and wanted in reward.error, (answer, reward)
    assert guarded.num_errors == len(guarded.errors) == 9 and guarded.errors[0].answer == "raise"
    guarded.close()


@pytest.mark.parametrize("name", [name for name, metric in GRADERS.items() if metric.kind != "corpus"])
def test_every_grader_is_a_reward_function(name):
    perfect, wrong, reference = MATRIX[name]
    guarded = GuardedReward(GRADERS[name].grade)
    task = TASKS.get(name, Task())
    assert guarded(perfect, reference, task).value == 1.0 and guarded(wrong, reference, task).value < 0.1
    guarded.close()


# code


@pytest.mark.parametrize(
    "answer, code",
    [
        ("x = 1", "x = 1"),
        ("Sure!\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```py\na\n```\nthen\n```python\nlonger\n```\n```bash\nmuch longer than both\n```", "longer\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```json\n{}\n```", "```json\n{}\n```"),
        ("```python\nx = 1\ny = ", "x = 1\ny = "),
        ("  ~~~Python title=a\n  x\n  ~~~", "  x\n"),
    ],
)
def test_the_code_of_an_answer(answer, code):
    assert code_in(answer) == code


def test_tests_that_prove_nothing_are_found_before_any_model_is_asked():
    tasks = [
        Task(columns={"tests": "assert add(1, 2) == 3"}),
        Task(columns={"tests": "assert add(1, 2) == 4"}),
        Task(columns={"tests": "assert True"}),
        Task(columns={"tests": "def check(f):\n    assert f(1, 2) == 3", "entry_point": "add"}),
    ]
    right, wrong, empty, humaneval = GRADERS["unit_tests"].problems(["def add(a, b): return a + b"] * 4, tasks)
    assert right == humaneval == "" and "fails its own tests (failed: tests:1: assert add(1, 2) == 4" in wrong
    assert empty == "an empty program passes its tests"
    for columns in ({}, {"tests": " "}, {"tests": 7}):
        with pytest.raises(EvaluateError, match="no tests in its column 'tests'"):
            grade("unit_tests", "x = 1", "", Task(columns=columns))


def test_options_of_unit_tests_reach_the_sandbox():
    def passes(answer, tests, **options):
        options = GradersSpec(unit_tests=UnitTestsSpec(column="checks", **options))
        return grade("unit_tests", answer, "", Task(columns={"checks": tests}, options=options))

    slow = "import time\ndef f():\n    time.sleep(1)\n    return 1"
    assert passes(slow, "assert f() == 1") == 1.0 and passes(slow, "assert f() == 1", timeout_s=0.3) == 0.0
    large = "def f(): return len(bytearray(100 << 20)) >> 20"
    assert passes(large, "assert f() == 100") == 1.0 and passes(large, "assert f() == 100", memory_mb=96) == 0.0

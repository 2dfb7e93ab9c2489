"""The whole evaluation on rule samplers: verdicts, outputs, prompt search, leaks, ledger, baselines."""

import html
import json
from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree as ET

import pytest

from luthier.config.evaluate import EvaluateSpec
from luthier.errors import EvaluateError
from luthier.evaluate.arms import PromptVariant, build_prompt, draw_examples
from luthier.evaluate.baselines import TfIdf, fit_logistic, trivial_baselines
from luthier.evaluate.cases import Case, cases_from_rows, with_schema
from luthier.evaluate.ledger import record_look
from luthier.evaluate.perplexity import general_texts
from luthier.evaluate.run import CaseSets, Context, Subject, evaluate
from luthier.evaluate.search import search_prompts
from luthier.evaluate.verdict import decide
from luthier.pages.page import Section, paragraph
from luthier.types import Message, Row
from tests.evaluate.worlds import SCHEMA, RuleSampler, RuleScorer, gold, make_cases

SPEC = EvaluateSpec(
    metric="json_exact",
    metrics=("json_field_accuracy",),
    prompt={"shots": (0, 2), "instructions": ("", "Think of <b>paint</b>.")},
    gates={"format": {"max_failure_rate": 0.03}},
)
SETS = CaseSets(make_cases(0, 160), make_cases(1000, 72), make_cases(2000, 120), make_cases(3000, 150))
NORMAL = RuleScorer(1.0)


def subject(rate, digest="t", bits=1.0, name="m"):
    return Subject(RuleSampler(name, rate), RuleScorer(bits), digest)


def shots(messages):
    return sum(message["role"] == "assistant" for message in messages)


WEAK = Subject(RuleSampler("base", lambda m: 0.05 + 0.1 * shots(m)), NORMAL, "base")
PROMPTABLE = Subject(RuleSampler("base", lambda m: 1.0 if shots(m) else 0.05), NORMAL, "base")


def run(tmp_path, base, tuned, sets=SETS, spec=SPEC, **context):
    context = {"schema": SCHEMA, "run_id": "r1", **context}
    return evaluate(
        spec, base, tuned, sets, out=tmp_path / "out", ledger=tmp_path / "ledger.jsonl", context=Context(**context)
    )


def test_good_tune_ships_and_everything_is_written(tmp_path):
    goal = {
        "target_behaviour": "fills forms",
        "success_criteria": ["json_exact >= 90%", "people like it"],
        "owner": "ada",
    }
    extra = [Section("Training curve", paragraph("down"))]
    verdict = run(tmp_path, WEAK, subject(lambda m: 1.0), goal=goal, sections=extra)
    assert (verdict.verdict, verdict.exit_code) == ("SHIP_TUNE", 0), verdict.reason
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == [
        "junit.xml",
        "report.html",
        "report.md",
        "samples.jsonl",
        "verdict.json",
    ]
    assert (out / "verdict.json").read_text() == decide(out / "samples.jsonl").as_text()
    markdown, html = (out / "report.md").read_text(), (out / "report.html").read_text()
    for text in (markdown, html):
        for needed in (
            "Ship the tune",
            "task_vs_prompt",
            "memorization",
            "not run",
            "constrained",
            "people like it",
            "judge by hand",
            "Training curve",
            "most frequent answer",
            "look 1",
            "colour",
            "Won by the tune",
            "detectable effect",
        ):
            assert needed in text, needed
    assert markdown.index("task_vs_prompt") < markdown.index("## ") and "| json_exact >= 90% |" in markdown
    assert "<script" not in html and "http-equiv" in html and "<b>paint" not in html and "<svg" in html
    assert len(json.loads((out / "samples.jsonl").read_text().splitlines()[0])["candidates"]) == 4
    suite = ET.parse(out / "junit.xml").getroot()[0]
    assert {c.get("name") for c in suite} >= {"task_vs_prompt", "task_vs_base", "format", "perplexity", "safety"}
    assert suite.get("failures") == "0"


@pytest.mark.parametrize(
    ("criterion", "held"),
    [
        ("json_exact >= 0.5", "yes"),
        ("json_exact >= 50%", "yes"),
        ("Nine of ten forms are right: json_exact >= 90%", "no"),
        ("Better than any prompt: json_exact > prompt", "yes"),
        ("json_exact <= base", "no"),
        ("json_exact >= often", "judge by hand"),
        ("accuracy >= 10%", "judge by hand"),  # not measured in this run
        ("at 2 > 1 people like it", "judge by hand"),
    ],
)
def test_a_success_criterion_with_a_figure_is_held_against_what_was_reached(tmp_path, criterion, held):
    run(tmp_path, WEAK, subject(lambda m: 0.8), goal={"success_criteria": [criterion]})
    lines = html.unescape((tmp_path / "out" / "report.md").read_text()).splitlines()
    (line,) = (line for line in lines if line.startswith(f"| {criterion} |"))
    assert line.endswith(f"| {held} |")


def test_a_success_criterion_against_an_arm_takes_the_arm_s_figure(tmp_path):
    run(tmp_path, PROMPTABLE, subject(lambda m: 0.8), goal={"success_criteria": ["json_exact > prompt"]})
    assert "prompt 100.0% | no |" in (tmp_path / "out" / "report.md").read_text()


def test_same_evaluation_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        run(tmp_path / name, WEAK, subject(lambda m: 0.9))
    for file in ("samples.jsonl", "verdict.json", "report.md", "report.html", "junit.xml"):
        assert (tmp_path / "one/out" / file).read_bytes() == (tmp_path / "two/out" / file).read_bytes()


@pytest.mark.parametrize(
    ("base", "tuned", "expected"),
    [
        (PROMPTABLE, subject(lambda m: 1.0), "SHIP_PROMPT"),
        (WEAK, subject(lambda m: 0.0), "SHIP_NOTHING"),
        (WEAK, subject(lambda m: 1.0, bits=1.1), "SHIP_NOTHING"),
        (WEAK, Subject(RuleSampler("t", lambda m: 1.0), None, "t"), "SHIP_NOTHING"),
        (WEAK, Subject(RuleSampler("t", lambda m: 0.85, wrong="oops"), NORMAL, "t"), "SHIP_NOTHING"),
        (WEAK, WEAK, "SHIP_NOTHING"),
    ],
)
def test_verdicts_end_to_end(tmp_path, base, tuned, expected):
    verdict = run(tmp_path, base, tuned)
    assert verdict.verdict == expected, verdict.reason


def test_small_test_set_is_inconclusive_and_junit_says_skipped(tmp_path):
    sets = CaseSets(SETS.test[:20], SETS.dev, SETS.train, SETS.unlabelled)
    verdict = run(tmp_path, WEAK, subject(lambda m: 1.0), sets=sets)
    assert (verdict.verdict, verdict.exit_code) == ("INCONCLUSIVE", 12)
    case = next(
        c for c in ET.parse(tmp_path / "out/junit.xml").getroot().iter("testcase") if c.get("name") == "task_vs_prompt"
    )
    assert case.find("skipped") is not None and "30" in case.find("skipped").get("message")


def test_no_dev_split_forfeits(tmp_path):
    verdict = run(tmp_path, WEAK, subject(lambda m: 1.0), sets=CaseSets(SETS.test, (), SETS.train, SETS.unlabelled))
    assert verdict.verdict == "INCONCLUSIVE" and "dev split" in verdict.reason


def test_sampled_same_model_does_not_ship(tmp_path):
    spec = SPEC.model_copy(
        update={"temperature": 1.0, "prompt": SPEC.prompt.model_copy(update={"shots": (0,), "instructions": ("",)})}
    )
    same = Subject(RuleSampler("same", lambda m: 0.5), NORMAL, "same")
    assert run(tmp_path, same, same, spec=spec).verdict != "SHIP_TUNE"


def test_leaks_are_refused_before_anything_is_asked(tmp_path):
    tuned = subject(lambda m: 1.0)
    sibling = Case("new", SETS.test[3].group, SETS.test[3].prompt, gold(3))
    for train, dev in (([SETS.test[3]], SETS.dev), ([sibling], SETS.dev), (SETS.train, [sibling])):
        with pytest.raises(EvaluateError, match="1 of 160 test rows"):
            run(tmp_path, WEAK, tuned, sets=CaseSets(SETS.test, dev, train))
    with pytest.raises(EvaluateError, match="no test case"):
        run(tmp_path, WEAK, tuned, sets=CaseSets([], SETS.dev, SETS.train))
    assert tuned.sampler.num_asked == 0 and not (tmp_path / "ledger.jsonl").exists()


def test_references_that_nobody_can_meet_are_refused_first(tmp_path):
    base, odd = subject(lambda m: 1.0), Case("odd", "odd", SETS.test[0].prompt, '{"colour": "green", "size": 1}')
    with pytest.raises(EvaluateError, match="row odd does not fit"):
        run(tmp_path, base, base, sets=CaseSets([*SETS.test, odd], SETS.dev))
    plain = Case("odd", "odd", SETS.test[0].prompt, "green")
    with pytest.raises(EvaluateError, match="not strict JSON"):
        run(tmp_path, base, base, sets=CaseSets([*SETS.test, plain], SETS.dev), schema=None)
    assert base.sampler.num_asked == 0 and not (tmp_path / "ledger.jsonl").exists()


def test_ledger_counts_artefacts_not_runs(tmp_path):
    levels = [run(tmp_path, WEAK, subject(lambda m: 1.0, digest=d)).policy.level for d in ("a", "b", "a", "c")]
    assert levels == pytest.approx([0.05, 0.025, 0.05, 0.05 / 3])
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 4
    other = CaseSets(SETS.test[1:], SETS.dev, SETS.train)
    assert run(tmp_path, WEAK, subject(lambda m: 1.0, digest="b"), sets=other).policy.looks == 1


def test_ledger_is_race_free_and_refuses_damage(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with ThreadPoolExecutor(8) as pool:
        looks = list(
            pool.map(lambda i: record_look(path, test_set="s", artefact=f"a{i}", num_cases=1, run_id=""), range(24))
        )
    assert sorted(looks) == list(range(1, 25))
    with open(path, "a") as file:
        file.write('{"test_set": "s"')
    with pytest.raises(EvaluateError, match=r"ledger.jsonl:25"):
        record_look(path, test_set="s", artefact="x", num_cases=1, run_id="")


def test_search_uses_dev_only_and_finds_the_best():
    sampler = RuleSampler("base", lambda m: 0.2 + 0.5 * (shots(m) == 2) + 0.25 * ("paint" in m[0]["content"]))
    found = search_prompts(sampler, SETS.dev, SETS.train, SPEC, schema=SCHEMA)
    assert found.winner == PromptVariant("Think of <b>paint</b>.", 2)
    assert sampler.num_asked == 4 * 24 + 2 * 48
    assert [c.num_rows for c in found.candidates if c.is_finalist] == [72, 72]
    assert {c.id for c in found.examples} <= {c.id for c in SETS.train}


def test_ties_go_to_the_simpler_prompt_and_no_dev_searches_nothing():
    sampler = RuleSampler("base", lambda m: 1.0)
    assert search_prompts(sampler, SETS.dev, SETS.train, SPEC).winner == PromptVariant()
    assert search_prompts(sampler, [], SETS.train, SPEC).candidates == ()


def test_arms_differ_only_by_instruction_and_examples():
    case = make_cases(5, 1)[0]
    examples = draw_examples(SETS.train, 4, seed=0)
    assert [c.id for c in draw_examples(list(reversed(SETS.train)), 2, seed=0)] == [c.id for c in examples[:2]]
    assert len({c.group for c in examples}) == 4 and len({c.reference for c in examples}) == 4
    assert build_prompt(case, PromptVariant(), examples) == case.prompt
    prompt = build_prompt(case, PromptVariant("Be brief.", 2), examples)
    assert [m["role"] for m in prompt] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert prompt[0]["content"] == "Be brief.\n\n" + case.prompt[0]["content"] and prompt[-1] == case.prompt[-1]
    assert draw_examples([], 3, seed=0) == []


def test_cases_carry_the_schema_once():
    rows = [Row("r1", (Message(role="user", content="item 1"), Message(role="assistant", content=gold(1))), group="g")]
    prompt = cases_from_rows(rows, SCHEMA)[0].prompt
    assert prompt[0]["role"] == "system" and '- colour: one of "red", "blue"' in prompt[0]["content"]
    assert "- size: integer; from 1 to 3" in prompt[0]["content"]
    assert with_schema(prompt, SCHEMA) == prompt, "a system message that names every field stays as it is"
    assert cases_from_rows(rows)[0].prompt == rows[0].prompt
    for bad in (Row("t", text="plain", source="a.txt", line=3), Row("q", rows[0].messages[:1])):
        with pytest.raises(EvaluateError, match=r"row (t|q)"):
            cases_from_rows([bad])
    with pytest.raises(EvaluateError, match="twice"):
        cases_from_rows(rows * 2)
    assert cases_from_rows([Row("q", rows[0].messages[:1])], labelled=False)[0].reference == ""


def test_baselines_learn_what_words_give_away():
    def case(i):
        colour, size = ["red", "blue"][i % 2], [1, 1, 1, 2][i % 4]
        text = f"the {['crimson', 'azure'][i % 2]} one number {i}"
        return Case(
            f"b{i}", f"b{i}", (Message(role="user", content=text),), json.dumps({"colour": colour, "size": size})
        )

    cases = [case(i) for i in range(200)]
    common, learned = trivial_baselines(cases[:120], cases[120:150], cases[150:], "json_exact")
    assert learned.fields["colour"] == 1.0 and common.fields["colour"] == pytest.approx(0.5, abs=0.05)
    assert learned.figure >= common.figure and common.fields["size"] == pytest.approx(0.75, abs=0.05)
    plain = [Case(c.id, c.group, c.prompt, json.loads(c.reference)["colour"]) for c in cases]
    assert trivial_baselines(plain[:120], [], plain[150:], "accuracy")[1].figure == 1.0
    assert trivial_baselines([], [], cases, "json_exact") == []


def test_logistic_regression_gradient_and_optimum():
    texts = [f"w{i % 3} w{i % 5} w{i % 7}" for i in range(60)]
    labels = [f"c{i % 3}" for i in range(60)]
    x = TfIdf(texts).rows(texts)
    model = fit_logistic(x, labels, 0.1)
    assert model.predict(x) == labels
    import numpy as np

    logits = x @ model.weights[:-1] + model.weights[-1]
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    error = p - np.array([[label == name for name in model.classes] for label in labels])
    assert abs(x.T @ error + 0.1 * model.weights[:-1]).max() < 2e-2, "the gradient vanishes at the optimum"


def test_general_text_is_in_the_package():
    texts = general_texts()
    assert len(texts) >= 200 and len(set(texts)) == len(texts) and min(map(len, texts)) > 100

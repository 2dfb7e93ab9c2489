"""Gates and verdict: truth table, fail closed, monotone, A/A, multiplicity, exits, replay."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest

from luthier.errors import EvaluateError
from luthier.evaluate.gate import format_gate, perplexity_gate, superiority_gate
from luthier.evaluate.perplexity import Document
from luthier.evaluate.policy import Policy
from luthier.evaluate.samples import read_samples, write_samples
from luthier.evaluate.verdict import combine, decide, exit_code, judge
from tests.evaluate.worlds import make_samples

STATUSES = ("FAIL", "INCONCLUSIVE", "PASS")
STRENGTH = {"SHIP_NOTHING": 0, "SHIP_PROMPT": 0, "INCONCLUSIVE": 1, "SHIP_TUNE": 2}


def rate(share, n=200):
    return [1.0 if i < round(share * n) else 0.0 for i in range(n)]


def test_truth_table_of_the_verdict():
    for tune in itertools.product(STATUSES, repeat=4):
        for prompt in itertools.product(STATUSES, repeat=2):
            got = combine(tune, prompt)
            if set(tune) == {"PASS"}:
                assert got == "SHIP_TUNE"
            elif "FAIL" not in tune:
                assert got == "INCONCLUSIVE"
            else:
                assert got == ("SHIP_PROMPT" if set(prompt) == {"PASS"} else "SHIP_NOTHING")


def test_truth_table_is_monotone():
    for tune in itertools.product(STATUSES, repeat=3):
        for prompt in itertools.product(STATUSES, repeat=2):
            before = STRENGTH[combine(tune, prompt)]
            for i, status in enumerate(tune):
                for better in STATUSES[STATUSES.index(status) + 1 :]:
                    assert STRENGTH[combine((*tune[:i], better, *tune[i + 1 :]), prompt)] >= before


def test_no_gate_at_all_never_ships():
    assert combine([], ["PASS"]) == "SHIP_PROMPT" and combine([], []) == "SHIP_NOTHING"


@pytest.mark.parametrize(
    ("tuned", "prompt", "base", "expected", "code"),
    [
        (rate(0.8), rate(0.4), rate(0.1), "SHIP_TUNE", 0),
        (rate(0.8), rate(0.8), rate(0.1), "SHIP_PROMPT", 10),
        (rate(0.0), rate(0.1), rate(0.1), "SHIP_NOTHING", 11),
        (rate(0.1), rate(0.1), rate(0.1), "SHIP_NOTHING", 11),
        (rate(0.9, 20), rate(0.4, 20), rate(0.1, 20), "INCONCLUSIVE", 12),
        (rate(0.44, 60), rate(0.4, 60), rate(0.1, 60), "INCONCLUSIVE", 12),
    ],
)
def test_verdicts_and_exit_codes(tuned, prompt, base, expected, code):
    verdict = judge(make_samples(tuned, prompt, base))
    assert (verdict.verdict, verdict.exit_code) == (expected, code), verdict.reason


@pytest.mark.parametrize("alone", ["format", "perplexity"])
def test_each_other_gate_blocks_alone(alone):
    damage = {"valid": False} if alone == "format" else {"tuned_nats": 110.0}
    verdict = judge(make_samples(rate(0.8), rate(0.4), rate(0.4), **damage))
    assert verdict.verdict == "SHIP_NOTHING" and alone in verdict.reason
    assert [gate.id for gate in verdict.gates if gate.status == "FAIL"] == [alone]


def test_prompt_must_pass_the_format_gate_too():
    verdict = judge(make_samples(rate(0.0), rate(0.8), rate(0.1), valid=False))
    assert verdict.verdict == "SHIP_NOTHING"


def test_require_maps_allowed_verdicts_to_zero():
    codes = {
        r: [exit_code(v, r) for v in ("SHIP_TUNE", "SHIP_PROMPT", "SHIP_NOTHING", "INCONCLUSIVE")]
        for r in (None, "tune", "prompt", "any")
    }
    assert codes == {None: [0, 10, 11, 12], "tune": [0, 10, 11, 12], "prompt": [0, 0, 11, 12], "any": [0, 0, 0, 0]}
    samples = make_samples(rate(0.8), rate(0.8), rate(0.1))
    assert judge(samples, require="prompt").exit_code == 0 and judge(samples).exit_code == 10


def test_forfeited_run_is_inconclusive():
    verdict = judge(make_samples(rate(0.8), rate(0.4), rate(0.1), forfeit="there is no dev split"))
    assert (verdict.verdict, verdict.exit_code) == ("INCONCLUSIVE", 12) and "no dev split" in verdict.reason


def broken(samples, **changes):
    """The first tuned test sample with some fields changed."""
    made = [dataclasses.replace(s, **changes) if s.arm == "tuned" and s.id == "c0" else s for s in samples.samples]
    return dataclasses.replace(samples, samples=tuple(made))


@pytest.mark.parametrize("score", [None, math.nan, math.inf, "1.0", True])
def test_scores_that_are_no_finite_numbers_fail_closed(score):
    samples = broken(make_samples(rate(0.8), rate(0.1), rate(0.1)), scores={"exact_match": score})
    verdict = judge(samples)
    assert verdict.verdict == "SHIP_NOTHING" and "evidence is missing" in verdict.reason


def test_missing_evidence_fails_closed():
    good = make_samples(rate(0.8), rate(0.1), rate(0.1))
    lost = [
        dataclasses.replace(good, samples=good.samples[:-1]),
        dataclasses.replace(good, samples=tuple(s for s in good.samples if (s.arm, s.id) != ("prompt", "c7"))),
        dataclasses.replace(good, samples=tuple(s for s in good.samples if s.arm != "tuned")),
        dataclasses.replace(good, documents=()),
        dataclasses.replace(good, documents=(*good.documents, Document("x", 90.0, math.nan, 80))),
        dataclasses.replace(good, documents=(*good.documents, Document("x", 90.0, None, 80))),
        dataclasses.replace(good, documents=(*good.documents, Document("x", 0.0, 90.0, 80))),
        dataclasses.replace(good, questions=()),
        broken(good, problem=None),
        broken(good, scores={}),
    ]
    for samples in lost:
        assert judge(samples).verdict == "SHIP_NOTHING"


def test_same_model_twice_does_not_ship():
    """A/A: two equally good arms with independent noise, 200 seeds; shipping stays at the level."""
    shipped = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        arms = [(rng.random(150) < 0.5).astype(float) for _ in range(2)]
        samples = make_samples(arms[0], arms[1], arms[1], num_extra=0)
        shipped += superiority_gate("task", "tuned", "prompt", samples, Policy("exact_match")).status == "PASS"
    assert shipped / 200 <= 0.07


def test_significant_but_too_small_does_not_pass():
    tuned, control = rate(0.52, 3000), rate(0.505, 3000)
    gate = superiority_gate("task", "tuned", "prompt", make_samples(tuned, control, control), Policy("exact_match"))
    assert gate.p_value < 0.001 and gate.status == "FAIL"


def test_planned_size_settles_an_open_gate():
    rng = np.random.default_rng(0)
    control = (rng.random(4700) < 0.5).astype(float)
    tuned = np.where(rng.random(4700) < 0.3, (rng.random(4700) < 0.515), control)
    for n, expected in ((1000, "INCONCLUSIVE"), (4700, "FAIL")):
        samples = make_samples(tuned[:n], control[:n], control[:n])
        gate = superiority_gate("task", "tuned", "prompt", samples, Policy("exact_match"))
        assert gate.status == expected or gate.status == "PASS" or gate.high < 0.02
        assert gate.status != "INCONCLUSIVE" or gate.n_needed > n


@pytest.mark.parametrize("grouped", [False, True])
def test_task_gate_is_monotone(grouped):
    """Turning wrong answers into right ones one by one only ever raises the status."""
    rng, n = np.random.default_rng(1), 120
    control = (rng.random(n) < 0.5).astype(float)
    tuned = np.zeros(n)
    groups = [f"g{i // 2 if grouped else i}" for i in range(n)]
    seen = []
    for i in [*rng.permutation(n), None]:
        samples = make_samples(tuned, control, control, groups=groups, num_extra=0)
        status = superiority_gate("task", "tuned", "prompt", samples, Policy("exact_match")).status
        seen.append(STATUSES.index(status))
        if i is not None:
            tuned[i] = 1.0
    assert seen == sorted(seen) and set(seen) == {0, 1, 2}


def test_perplexity_gate_is_monotone_and_three_valued():
    rng = np.random.default_rng(0)
    base = rng.uniform(80, 200, 100)
    noise = rng.normal(0, 0.03, 100)
    seen = []
    for change in np.linspace(0.08, -0.05, 27):
        documents = [
            Document(f"d{i}", b, b * (1 + change + e), 100) for i, (b, e) in enumerate(zip(base, noise, strict=True))
        ]
        gate = perplexity_gate("perplexity", documents, Policy("exact_match"))
        assert (gate.status == "PASS") == (gate.high <= 0.02) and (gate.status == "FAIL") == (gate.low > 0.02)
        seen.append(STATUSES.index(gate.status))
    assert seen == sorted(seen) and set(seen) == {0, 1, 2}
    few = perplexity_gate("perplexity", documents[:20], Policy("exact_match"))
    assert few.status == "INCONCLUSIVE" and few.n_needed >= 30


@pytest.mark.parametrize(
    ("failures", "limit", "expected"),
    [(0, 0.01, "PASS"), (1, 0.01, "INCONCLUSIVE"), (12, 0.01, "FAIL"), (3, 0.03, "PASS"), (5, 0.03, "INCONCLUSIVE")],
)
def test_format_gate_on_300_prompts(failures, limit, expected):
    samples = make_samples([], [], [])
    made = [dataclasses.replace(s, problem="bad" if int(s.id[1:]) < failures else "") for s in samples.samples]
    samples = dataclasses.replace(samples, samples=tuple(made))
    gate = format_gate("format", "tuned", samples, Policy("exact_match", max_failure_rate=limit))
    assert gate.status == expected and gate.n == 300
    assert (gate.n_needed is not None) == (expected == "INCONCLUSIVE")


def test_format_gate_counts_distinct_prompts():
    samples = make_samples([], [], [])
    same = dataclasses.replace(samples, samples=tuple(dataclasses.replace(s, prompt="one") for s in samples.samples))
    gate = format_gate("format", "tuned", same, Policy("exact_match", max_failure_rate=0.03))
    assert gate.n == 1 and gate.status == "INCONCLUSIVE"


def test_later_looks_are_dearer():
    tuned, control = rate(0.56, 100), rate(0.52, 100)
    for looks, expected in ((1, "PASS"), (2, "INCONCLUSIVE")):
        policy = Policy("exact_match", looks=looks)
        gate = superiority_gate("task", "tuned", "prompt", make_samples(tuned, control, control, policy=policy), policy)
        assert gate.status == expected and policy.level == 0.05 / looks


def test_corpus_metric_gates():
    rng = np.random.default_rng(0)
    samples = make_samples(rate(0.5), rate(0.5), rate(0.5), policy=Policy("macro_f1", perplexity_margin=None))
    labels = ["a", "b", "c"]
    made = []
    for s in samples.samples:
        i = int(s.id[1:])
        right = rng.random() < {"tuned": 0.9, "prompt": 0.5, "base": 0.5}[s.arm]
        made.append(dataclasses.replace(s, scores={"macro_f1": [labels[i % 3] if right else "d", labels[i % 3]]}))
    verdict = judge(dataclasses.replace(samples, samples=tuple(made)))
    assert verdict.verdict == "SHIP_TUNE" and verdict.gates[0].low > 0.2
    assert "perplexity" in verdict.not_run and "format" in verdict.not_run


def test_verdict_replays_byte_for_byte(tmp_path):
    samples = make_samples(rate(0.8), rate(0.4), rate(0.1), groups=[f"g{i // 3}" for i in range(200)])
    written = write_samples(tmp_path / "samples.jsonl", samples)
    first = decide(tmp_path / "samples.jsonl")
    assert first.as_text() == judge(written).as_text() == decide(tmp_path / "samples.jsonl").as_text()
    assert json.loads(first.as_text())["samples_sha256"] == written.digest
    again = write_samples(tmp_path / "again.jsonl", written)
    assert again.digest == written.digest


def test_nan_survives_the_file_as_missing(tmp_path):
    samples = broken(make_samples(rate(0.8), rate(0.1), rate(0.1)), scores={"exact_match": math.nan})
    write_samples(tmp_path / "s.jsonl", samples)
    assert decide(tmp_path / "s.jsonl").verdict == "SHIP_NOTHING"


def test_a_score_of_another_metric_s_form_is_no_score(tmp_path):
    samples = broken(make_samples(rate(0.8), rate(0.1), rate(0.1)), scores={"exact_match": ["yes", "yes"]})
    write_samples(tmp_path / "s.jsonl", samples)
    verdict = decide(tmp_path / "s.jsonl")
    assert verdict.verdict == "SHIP_NOTHING" and None in verdict.metrics["exact_match"].values()


def test_torn_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "s.jsonl"
    write_samples(path, make_samples(rate(0.8), rate(0.1), rate(0.1)))
    text = path.read_text()
    bad = {
        "torn": text[: len(text) // 2],
        "short": "\n".join(text.splitlines()[:-1]) + "\n",
        "empty": "",
        "other": '{"a": 1}\n',
        "not json": text.replace('"kind": "sample"', '"kind": sample', 1),
        "version": text.replace('"schema_version": 1', '"schema_version": 99'),
        "unknown field": text.replace('"finish"', '"finnish"', 1),
    }
    for name, content in bad.items():
        path.write_text(content)
        with pytest.raises(EvaluateError, match=r"s\.jsonl"):
            decide(path)
        assert name
    path.write_text("")
    with pytest.raises(EvaluateError, match="is empty"):
        decide(path)
    with pytest.raises(EvaluateError, match="cannot read"):
        read_samples(tmp_path / "nowhere.jsonl")


def _edited(path, kind, change):
    """The first line of a kind, changed; a list stands for further lines."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    place = next(i for i, line in enumerate(lines) if line["kind"] == kind)
    extra = change(lines[place])
    lines += [extra] if extra else []
    lines[0]["num_lines"] = len(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _policy(**values):
    return "header", lambda line: line["policy"].update(values)


FOREIGN = {
    "answer to nothing asked": ("sample", lambda line: line | {"id": "other"}),
    "answer twice": ("sample", lambda line: line | {"scores": {"exact_match": 1.0}}),
    "case twice": ("case", lambda line: dict(line)),
    "group is a list": ("case", lambda line: line.update(group=["a"])),
    "arm": ("sample", lambda line: line.update(arm="best")),
    "split": ("sample", lambda line: line.update(split="dev")),
    "scores": ("sample", lambda line: line.update(scores=None)),
    "problem": ("sample", lambda line: line.update(problem=3)),
    "not a number": ("document", lambda line: line.update(base_nats=float("nan"))),
    "metric": _policy(metric="vibes"),
    "alpha as text": _policy(alpha="x"),
    "alpha 0.9": _policy(alpha=0.9),
    "no look": _policy(looks=0),
    "half a look": _policy(looks=1.5),
    "min_pairs": _policy(min_pairs=[]),
    "require": _policy(require="x"),
    "limit": _policy(perplexity_margin=10**400),
    "unknown key": _policy(bonus=1),
    "key left out": ("header", lambda line: line["policy"].pop("perplexity_margin") and None),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_no_evaluation_writes_is_refused_in_words(tmp_path, name):
    path = tmp_path / "samples.jsonl"
    write_samples(path, make_samples([1] * 40, [0] * 40, [0] * 40))
    assert decide(path).verdict == "SHIP_TUNE"
    _edited(path, *FOREIGN[name])
    with pytest.raises(EvaluateError) as refused:
        decide(path)
    assert "samples.jsonl" in str(refused.value) and refused.value.hint


@pytest.mark.parametrize("score", [3.0, -0.1, 10**400])
def test_a_score_that_no_metric_gives_is_missing_evidence(tmp_path, score):
    path = tmp_path / "samples.jsonl"
    write_samples(path, make_samples([1] * 40, [0] * 40, [0] * 40))
    _edited(path, "sample", lambda line: line["scores"].update(exact_match=score))
    assert decide(path).gates[1].status == "FAIL"

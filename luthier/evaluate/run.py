"""The evaluation itself: search a prompt on dev, ask three arms the sealed cases, judge, write everything down.

Samplers and scorers are handed in, so a local model, a merged folder and a live server look alike. Order matters:
leaks and references that cannot be graded are refused first, then the prompt is chosen on dev, then the look is
entered in the ledger, and only then is the test set read. Nothing here knows torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from luthier.config.evaluate import EvaluateSpec
from luthier.errors import EvaluateError
from luthier.evaluate.arms import PromptVariant, build_prompt, prompt_digest
from luthier.evaluate.baselines import trivial_baselines
from luthier.evaluate.cases import Case, tasks_of
from luthier.evaluate.gap import reference_nats
from luthier.evaluate.junit import junit
from luthier.evaluate.ledger import record_look, test_set_digest
from luthier.evaluate.perplexity import Document, general_texts, score_documents
from luthier.evaluate.policy import Policy, policy_of
from luthier.evaluate.render import html_report, markdown_report
from luthier.evaluate.samples import Question, Sample, Samples, write_samples
from luthier.evaluate.search import SearchResult, search_prompts
from luthier.evaluate.verdict import Verdict, decide, judge
from luthier.graders.json_fields import problem
from luthier.graders.registry import grader
from luthier.pages.page import Section
from luthier.store.publish import digest_json, write_atomic
from luthier.types import Progress, Sampler, Scorer

PERPLEXITY_ROWS = 48
"""Test cases whose reference answers are scored: a figure for the report, so it may not cost minutes."""
Stages = Callable[[str], "Progress | None"]


@dataclass(frozen=True)
class Subject:
    """A model to ask. digest: of its files. Without a scorer the perplexity gate fails (it has no evidence)."""

    sampler: Sampler
    scorer: Scorer | None
    digest: str


@dataclass(frozen=True)
class CaseSets:
    """test: sealed. dev: for choosing the prompt. train: examples, baselines, leak check. unlabelled: format only."""

    test: Sequence[Case]
    dev: Sequence[Case] = ()
    train: Sequence[Case] = ()
    unlabelled: Sequence[Case] = ()


@dataclass(frozen=True)
class Context:
    """What an evaluation is told besides models and cases. All of it may stay empty.

    inputs: name -> digest (tokenizer, template, adapter, data, code). goal: the section of the project file.
    forfeit: why no verdict can be given (such as a missing dev split). sections: more parts for report.html.
    """

    run_id: str = ""
    schema: dict[str, Any] | None = None
    inputs: dict[str, str] | None = None
    goal: dict[str, Any] | None = None
    forfeit: str = ""
    sections: Sequence[Section] = ()


def evaluate(
    spec: EvaluateSpec,
    base: Subject,
    tuned: Subject,
    cases: CaseSets,
    *,
    out: Path,
    ledger: Path,
    context: Context | None = None,
    stages: Stages | None = None,
) -> Verdict:
    """Write samples.jsonl, verdict.json, report.md, report.html and junit.xml into `out` and return the verdict.

    stages: name of a stage -> progress callback for it. Raises EvaluateError for no cases and for leaked test rows.
    """
    context, stage = context or Context(), stages or (lambda name: None)
    refuse_leaks(cases)
    refuse_references(spec, cases, context.schema)
    found = search_prompts(
        base.sampler, cases.dev, cases.train, spec, schema=context.schema, progress=stage("prompt search")
    )
    test_set = test_set_digest(case.id for case in cases.test)
    look = record_look(
        ledger, test_set=test_set, artefact=tuned.digest, num_cases=len(cases.test), run_id=context.run_id
    )
    policy = policy_of(spec, has_schema=context.schema is not None, looks=look)
    answers = _ask_arms(spec, base, tuned, cases, found, policy, context, stage)
    documents = _documents(base, tuned, policy)
    header = _header(spec, base, tuned, cases, found, policy, context, test_set)
    questions = tuple(
        Question(split, case.id, case.group, case.question, case.reference)
        for split, part in (("test", cases.test), ("unlabelled", cases.unlabelled))
        for case in part
    )
    samples = Samples(header, questions, tuple(answers), tuple(documents))
    if _prompt_may_ship(judge(samples)) and cases.unlabelled and policy.max_failure_rate is not None:
        more = _ask("prompt", "unlabelled", base.sampler, cases.unlabelled, spec, context.schema, found, stage)
        samples = Samples(header, questions, (*samples.samples, *more), samples.documents)
    samples = write_samples(out / "samples.jsonl", samples)
    verdict = decide(out / "samples.jsonl")
    write_outputs(out, verdict, samples, sections=context.sections)
    return verdict


def write_outputs(out: Path, verdict: Verdict, samples: Samples, *, sections: Sequence[Section] = ()) -> None:
    """verdict.json, report.md, report.html and junit.xml of a judged evaluation."""
    write_atomic(out / "verdict.json", verdict.as_text())
    write_atomic(out / "report.md", markdown_report(verdict, samples, sections))
    write_atomic(out / "report.html", html_report(verdict, samples, sections))
    write_atomic(out / "junit.xml", junit(verdict))


def refuse_leaks(cases: CaseSets) -> None:
    """EvaluateError when there is no test case, or when one (or a row of its group) is also a train or dev row."""
    if not cases.test:
        raise EvaluateError("there is no test case", hint="give data.test, or a larger data.split.test share")
    for name, part in (("train", cases.train), ("dev", cases.dev)):
        ids, groups = {case.id for case in part}, {case.group for case in part}
        leaked = [case.id for case in cases.test if case.id in ids or case.group in groups]
        if leaked:
            raise EvaluateError(
                f"{len(leaked)} of {len(cases.test)} test rows (or rows of their groups) are also in {name}: "
                f"{', '.join(row[:12] for row in leaked[:5])}",
                hint="run `luthier prepare` again: it splits by group; a leaked row proves nothing",
            )


def refuse_references(spec: EvaluateSpec, cases: CaseSets, schema: dict[str, Any] | None) -> None:
    """EvaluateError, before anything is asked, when a reference breaks the schema or cannot be graded."""
    for case in (*cases.test, *cases.dev):
        if schema is not None and (why := problem(case.reference, schema)):
            raise EvaluateError(
                f"the reference answer of row {case.id[:12]} does not fit data.json_schema: {why}",
                hint="correct the schema or the row: no model can be right about both",
            )
    checked = [*cases.test, *cases.dev]
    references, tasks = [case.reference for case in checked], tasks_of(checked, spec, schema)
    for name in dict.fromkeys((spec.metric, *spec.metrics)):
        metric = grader(name)
        if metric.problems is None:
            metric.items(references, references, tasks)
            continue
        for case, why in zip(checked, metric.problems(references, tasks), strict=True):
            if why:
                raise EvaluateError(
                    f"the reference answer of row {case.id[:12]} cannot be graded by {name}: {why}",
                    hint="correct the row: no model can be judged by it",
                )


def _prompt_may_ship(verdict: Verdict) -> bool:
    """Whether the prompt arm's format on unlabelled prompts can still matter: it is asked for only then."""
    return verdict.verdict != "SHIP_TUNE" and verdict.prompt_gates[0].status == "PASS"


def _ask_arms(
    spec: EvaluateSpec,
    base: Subject,
    tuned: Subject,
    cases: CaseSets,
    found: SearchResult,
    policy: Policy,
    context: Context,
    stage: Stages,
) -> list[Sample]:
    """The three arms on the test cases, and the tuned arm on the unlabelled ones where format is judged."""
    plain = SearchResult(PromptVariant(), (), ())
    schema = context.schema
    answers = _ask("base", "test", base.sampler, cases.test, spec, schema, plain, stage)
    if found.winner == PromptVariant() and spec.temperature == 0:
        answers += [Sample(**{**asdict(sample), "arm": "prompt"}) for sample in answers]
    else:
        answers += _ask("prompt", "test", base.sampler, cases.test, spec, schema, found, stage)
    answers += _ask("tuned", "test", tuned.sampler, cases.test, spec, schema, plain, stage)
    if policy.max_failure_rate is not None:
        answers += _ask("tuned", "unlabelled", tuned.sampler, cases.unlabelled, spec, schema, plain, stage)
    return answers


def _ask(
    arm: str,
    split: str,
    sampler: Sampler,
    cases: Sequence[Case],
    spec: EvaluateSpec,
    schema: dict[str, Any] | None,
    found: SearchResult,
    stage: Stages,
) -> list[Sample]:
    """One arm on one set of cases. Each arm has its own seed: sampled decoding must not pair up by accident."""
    if not cases:
        return []
    prompts = [build_prompt(case, found.winner, found.examples) for case in cases]
    completions = sampler.sample(
        prompts,
        max_new_tokens=spec.max_new_tokens,
        temperature=spec.temperature,
        seed=spec.seed + ("base", "prompt", "tuned").index(arm),
        progress=stage(f"{arm} arm, {split}"),
    )
    if len(completions) != len(cases):
        raise EvaluateError(f"the {arm} sampler gave {len(completions)} answers to {len(cases)} prompts")
    names = dict.fromkeys((spec.metric, *spec.metrics)) if split == "test" else ()
    texts, references = [completion.text for completion in completions], [case.reference for case in cases]
    tasks = tasks_of(cases, spec, schema)
    items = {name: grader(name).items(texts, references, tasks) for name in names}
    return [
        Sample(
            arm=arm,
            split=split,
            id=case.id,
            group=case.group,
            prompt=prompt_digest(prompt),
            answer=completion.text,
            reference=case.reference,
            finish=completion.finish,
            scores={name: items[name][place] for name in names},
            problem=problem(completion.text, schema) if schema is not None else None,
        )
        for place, (case, prompt, completion) in enumerate(zip(cases, prompts, completions, strict=True))
    ]


def _documents(base: Subject, tuned: Subject, policy: Policy) -> list[Document]:
    if policy.perplexity_margin is None or base.scorer is None or tuned.scorer is None:
        return []
    return score_documents(base.scorer, tuned.scorer, general_texts())


def _answer_perplexity(scorer: Scorer | None, cases: Sequence[Case]) -> float | None:
    """Perplexity per token of the first PERPLEXITY_ROWS reference answers, given the case's own prompt."""
    if scorer is None:
        return None
    scores = [
        value
        for row in scorer.score([(case.prompt, case.reference) for case in cases[:PERPLEXITY_ROWS]])
        for value in row
    ]
    return round(math.exp(min(-sum(scores) / len(scores), 50.0)), 4) if scores else None


def _answer_nats(scorer: Scorer | None, cases: CaseSets, policy: Policy) -> dict[str, list[float]] | None:
    """What the tune's reference answers cost, of as many training and test cases; None where no gate asks."""
    if policy.gap_margin is None or scorer is None:
        return None
    return {name: reference_nats(scorer, getattr(cases, name)[:PERPLEXITY_ROWS]) for name in ("train", "test")}


def _header(
    spec: EvaluateSpec,
    base: Subject,
    tuned: Subject,
    cases: CaseSets,
    found: SearchResult,
    policy: Policy,
    context: Context,
    test_set: str,
) -> dict[str, Any]:
    """Line 1 of samples.jsonl: everything that the verdict and the report need besides the answers."""
    decode = {"max_new_tokens": spec.max_new_tokens, "temperature": spec.temperature, "seed": spec.seed}
    variants = {"base": PromptVariant(), "prompt": found.winner, "tuned": PromptVariant()}
    arms = [
        {
            "name": arm,
            "artefact": (tuned if arm == "tuned" else base).digest,
            "prompt": asdict(variant),
            "decode": decode,
        }
        for arm, variant in variants.items()
    ]
    tasks = tasks_of(cases.test, spec, context.schema)
    baselines = trivial_baselines(cases.train, cases.dev, cases.test, spec.metric, tasks)
    places = [(name, grader(name).environment) for name in dict.fromkeys((spec.metric, *spec.metrics))]
    shown = build_prompt(cases.test[0], found.winner, found.examples)
    return {
        "policy": policy.as_json(),
        "arms": arms,
        "data": {
            "test_set": test_set,
            "num_test": len(cases.test),
            "num_groups": len({case.group for case in cases.test}),
            "num_dev": len(cases.dev),
            "num_train": len(cases.train),
            "num_unlabelled": len(cases.unlabelled),
            "look": policy.looks,
        },
        "inputs": {**(context.inputs or {}), "schema": digest_json(context.schema) if context.schema else ""},
        "forfeit": context.forfeit or ("" if cases.dev else "there is no dev split to choose a prompt on"),
        "goal": context.goal or {},
        "candidates": [
            {**asdict(c.variant), "figure": c.figure, "num_rows": c.num_rows, "is_finalist": c.is_finalist}
            for c in found.candidates
        ],
        "winning_prompt": [dict(message) for message in shown],
        "examples": [case.id for case in found.examples],
        "environments": {name: words for name, place in places if place and (words := place(tasks[0]))},
        "baselines": [asdict(baseline) for baseline in baselines],
        "generalisation": _answer_nats(tuned.scorer, cases, policy),
        "answer_perplexity": {
            "num_rows": min(len(cases.test), PERPLEXITY_ROWS),
            "base": _answer_perplexity(base.scorer, cases.test),
            "tuned": _answer_perplexity(tuned.scorer, cases.test),
        },
    }

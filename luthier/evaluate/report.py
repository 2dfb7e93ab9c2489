"""What the report says, as neutral parts that `render.py` turns into Markdown and HTML.

Order: the verdict and its gates on the first screen, then the goal held against what was reached, then the evidence. A
number that speaks against the tune (a trivial baseline that wins, a gate not run) is shown like any other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.errors import EvaluateError
from luthier.evaluate.arms import PromptVariant
from luthier.evaluate.gate import Gate
from luthier.evaluate.samples import ARMS, Sample, Samples
from luthier.evaluate.verdict import Verdict
from luthier.graders.json_fields import field_hits
from luthier.graders.registry import GRADERS

HEADLINES = {
    "SHIP_TUNE": "Ship the tune",
    "SHIP_PROMPT": "Ship the base model with the best prompt",
    "SHIP_NOTHING": "Ship nothing",
    "INCONCLUSIVE": "Not enough evidence to decide",
}
NUM_FLIPS = 6
GATE_HEADERS = ("gate", "prompt arm", "tuned", "delta [bounds]", "p", "n", "margin", "status")
_CRITERION = re.compile(r"(?:^|:)\s*(\w+)\s*(>=|>|<=|<)\s*(?:(\d+(?:\.\d+)?)\s*(%?)|(base|prompt))\s*$")


@dataclass(frozen=True)
class Table:
    """A table of plain cells; numbers are aligned by the renderer."""

    headers: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]


@dataclass(frozen=True)
class Preformatted:
    """Text kept as written, under a short title."""

    title: str
    text: str


@dataclass(frozen=True)
class Part:
    """A section: a heading and blocks (str = paragraph, list = bullets, Table, Preformatted)."""

    heading: str
    blocks: tuple[object, ...]


def headline(verdict: Verdict) -> str:
    """The verdict as a sentence."""
    return f"{HEADLINES[verdict.verdict]}: {verdict.reason}."


def percent(value: float | None) -> str:
    """0.123 -> 12.3%; a dash for nothing."""
    return "–" if value is None else f"{value:.1%}"


def gate_table(verdict: Verdict) -> Table:
    """All judged gates. The control column names its arm where it is not the prompt arm."""
    rows = [_gate_row(gate) for gate in (*verdict.gates, *verdict.prompt_gates, *verdict.advisory)]
    rows += [(name, "", "", "", "", "", "", "not run") for name in verdict.not_run]
    return Table(GATE_HEADERS, tuple(rows))


def _gate_row(gate: Gate) -> tuple[object, ...]:
    show = (lambda value: f"{value:.3f}") if gate.id in ("perplexity", "generalisation") else percent
    if gate.id == "generalisation":  # nats all through: no share of anything
        delta, limit = _nats(gate.delta), _nats(gate.margin)
        ends = (_nats(gate.low), _nats(gate.high))
    else:
        delta, limit, ends = _signed(gate.delta), percent(gate.margin), (_signed(gate.low), _signed(gate.high))
    names = list(gate.figures)
    treated = next((name for name in ("tuned", "prompt") if name in names), "")
    control = next((name for name in names if name != treated), "")
    cells = {name: show(value) for name, value in gate.figures.items() if value is not None}
    left = f"{cells.get(control, '–')} ({control})" if control and control != "prompt" else cells.get(control, "")
    right = f"{cells.get(treated, '–')} (prompt)" if treated == "prompt" else cells.get(treated, "")
    bounds = f" [{ends[0]}, {ends[1]}]" if gate.low is not None or gate.high is not None else ""
    p_value = "" if gate.p_value is None else f"{gate.p_value:.2g}"
    return (gate.id, left, right, f"{delta}{bounds}", p_value, gate.n, limit, gate.status)


def _nats(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.1%}"


def parts(verdict: Verdict, samples: Samples) -> list[Part]:
    """Every section after the first screen, in order; those with nothing to say are left out."""
    made = [
        _goal(verdict),
        Part("What was measured", (_metric_table(verdict, samples), *_perplexity_words(samples), *_measured(samples))),
        _fields(samples),
        _baselines(verdict),
        _prompts(verdict),
        *_flips(verdict, samples),
        _broken_formats(samples),
        _power(verdict),
        _ledger(verdict),
        Part("Gates not run", ([f"{name}: {why}" for name, why in verdict.not_run.items()],)),
    ]
    return [part for part in made if part is not None and part.blocks]


def _goal(verdict: Verdict) -> Part | None:
    goal = verdict.header.get("goal") or {}
    facts = [(label, goal.get(key, "")) for label, key in GOAL_FACTS if goal.get(key)]
    criteria = tuple((text, *_held_against(text, verdict)) for text in goal.get("success_criteria", ()))
    blocks: list[object] = []
    if facts:
        blocks.append(Table(("goal", "as set"), tuple(facts)))
    if criteria:
        blocks.append(Table(("success criterion", "reached by the tune", "held"), criteria))
    if goal and not blocks:
        blocks.append("The project file sets no goal (section `goal`), so there is nothing to hold the result against.")
    return Part("The goal, held against what was reached", tuple(blocks)) if blocks else None


GOAL_FACTS = (
    ("target behaviour", "target_behaviour"),
    ("owner", "owner"),
    ("review date", "review_date"),
    ("rollback plan", "rollback_plan"),
)


def _held_against(criterion: str, verdict: Verdict) -> tuple[str, str]:
    """(what was reached, yes / no / judge by hand), as GoalSpec.success_criteria says. Figures of the test split are
    compared as they are: whether a difference is more than chance is the gates' to say."""
    match = _CRITERION.search(criterion)
    figures = verdict.metrics.get(match.group(1), {}) if match else {}
    reached = figures.get("tuned")
    number, sign, arm = match.groups()[2:] if match else (None, None, None)
    bound = figures.get(arm) if arm else float(number) / (100 if sign else 1) if number else None
    if match is None or reached is None or bound is None:
        main = verdict.metrics.get(verdict.policy.metric, {}).get("tuned")
        return f"{verdict.policy.metric} {percent(main)}, verdict {verdict.verdict}", "judge by hand"
    held = {">=": reached >= bound, ">": reached > bound, "<=": reached <= bound, "<": reached < bound}[match.group(2)]
    against = f", {arm} {percent(bound)}" if arm else ""
    return f"{match.group(1)} {percent(reached)}{against}", "yes" if held else "no"


def _metric_table(verdict: Verdict, samples: Samples) -> Table:
    rows: list[tuple[object, ...]] = [
        (name, *(percent(figures.get(arm)) for arm in ARMS)) for name, figures in verdict.metrics.items()
    ]
    checked = {arm: [s.problem == "" for s in samples.of(arm).values() if s.problem is not None] for arm in ARMS}
    if any(checked.values()):
        rows.append(("valid format, raw decoding", *(percent(_share(checked[arm])) for arm in ARMS)))
        rows.append(("valid format, constrained decoding", *("not run" for _ in ARMS)))
    cut = {arm: [s.finish == "length" for s in samples.of(arm).values()] for arm in ARMS}
    rows.append(("answers cut at max_new_tokens", *(percent(_share(cut[arm])) for arm in ARMS)))
    return Table(("on the test cases", *ARMS), tuple(rows))


def _share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None


def _perplexity_words(samples: Samples) -> list[str]:
    seen = samples.header.get("answer_perplexity") or {}
    if seen.get("base") is None or seen.get("tuned") is None:
        return []
    figures = f"base {seen['base']:.3f}, tuned {seen['tuned']:.3f}"
    return [f"Perplexity per token of {seen['num_rows']} reference answers: {figures}."]


def _measured(samples: Samples) -> list[str]:
    raw = (
        "All answers are raw text without repair. Constrained decoding was not run: it would make every answer valid "
        "by construction and hide a broken tune."
    )
    environments = samples.header.get("environments", {})
    return [raw, *(f"{name} ran generated code in the sandbox, behind: {tier}." for name, tier in environments.items())]


def field_accuracy(samples: Samples) -> dict[str, dict[str, float]]:
    """Field -> arm -> accuracy on the test cases; empty unless every reference is a JSON object."""
    table: dict[str, dict[str, list[bool]]] = {}
    for arm in ARMS:
        for sample in samples.of(arm).values():
            try:
                hits = field_hits(sample.answer, sample.reference)
            except EvaluateError:
                return {}
            for name, hit in hits.items():
                table.setdefault(name, {}).setdefault(arm, []).append(hit)
    return {name: {arm: sum(hits) / len(hits) for arm, hits in arms.items()} for name, arms in table.items()}


def _fields(samples: Samples) -> Part | None:
    accuracy = field_accuracy(samples)
    if not accuracy:
        return None
    baselines = samples.header.get("baselines", [])
    headers = ("field", *ARMS, *(baseline["name"] for baseline in baselines))
    rows = [
        (name, *(percent(arms.get(arm)) for arm in ARMS), *(percent(b["fields"].get(name)) for b in baselines))
        for name, arms in accuracy.items()
    ]
    means = [sum(arms.get(arm, 0.0) for arms in accuracy.values()) / len(accuracy) for arm in ARMS]
    learned = [sum(b["fields"].values()) / len(b["fields"]) if b["fields"] else None for b in baselines]
    rows.append(("mean of the fields", *map(percent, means), *map(percent, learned)))
    return Part("Field by field", (Table(headers, tuple(rows)),))


def _baselines(verdict: Verdict) -> Part | None:
    baselines = verdict.header.get("baselines", [])
    if not baselines:
        return None
    figures = verdict.metrics[verdict.policy.metric]
    rows = [(baseline["name"], percent(baseline["figure"])) for baseline in baselines]
    rows += [(f"{arm} arm", percent(figures[arm])) for arm in ARMS]
    best = max(baselines, key=lambda baseline: baseline["figure"])
    reached = figures["tuned"] or 0.0
    words = f"The best trivial baseline ({best['name']}) reaches {percent(best['figure'])}, " + (
        "which is at least as good as the tune: consider it instead."
        if best["figure"] >= reached
        else "less than the tune."
    )
    return Part("Trivial baselines", (words, Table(("who", verdict.policy.metric), tuple(rows))))


def _prompts(verdict: Verdict) -> Part | None:
    header = verdict.header
    tried = header.get("candidates", [])
    winner = next((arm["prompt"] for arm in header.get("arms", []) if arm["name"] == "prompt"), None)
    rows = [
        (
            PromptVariant(c["instruction"], c["shots"]).label,
            percent(c["figure"]),
            c["num_rows"],
            "winner"
            if winner == {"instruction": c["instruction"], "shots": c["shots"]}
            else "finalist" * c["is_finalist"],
        )
        for c in tried
    ]
    text = "\n\n".join(f"[{m['role']}]\n{m['content']}" for m in header.get("winning_prompt", []))
    words = (
        f"{len(tried)} candidates, chosen on dev rows only; every arm's prompt carries the same task and schema text."
    )
    blocks: list[object] = [words] if tried else ["No dev split, so no prompt was searched: the base prompt stands in."]
    if rows:
        blocks.append(Table(("candidate", f"dev {verdict.policy.metric}", "dev rows", ""), tuple(rows)))
    return Part("The prompt arm", (*blocks, Preformatted("The winning prompt, with the first test case", text)))


def _flips(verdict: Verdict, samples: Samples) -> list[Part]:
    """Cases on which the tuned and the prompt arm differ, both ways, side by side."""
    name = verdict.policy.metric
    if GRADERS[name].kind == "corpus":
        return []
    sides = (samples.of("prompt"), samples.of("tuned"))
    numbers = [{i: n for i, s in side.items() if (n := _number(s, name)) is not None} for side in sides]
    questions = [q for q in samples.asked() if all(q.id in side for side in numbers)]
    gaps = {q.id: numbers[1][q.id] - numbers[0][q.id] for q in questions}
    made = []
    for title, sign in (("Won by the tune (tuned right, prompt wrong)", 1), ("Lost by the tune", -1)):
        flipped = [q for q in questions if gaps[q.id] * sign > 0]
        flipped.sort(key=lambda q: -abs(gaps[q.id]))
        rows = tuple(
            (q.question, q.reference, sides[0][q.id].answer, sides[1][q.id].answer) for q in flipped[:NUM_FLIPS]
        )
        words = f"{len(flipped)} of {len(samples.asked())} cases; the first {len(rows)} are shown."
        made.append(
            Part(title, (words, Table(("question", "reference", "prompt arm", "tuned"), rows)) if rows else (words,))
        )
    return made


def _number(sample: Sample, metric: str) -> float | None:
    item = sample.scores.get(metric)
    return item if isinstance(item, (int, float)) else None


def _broken_formats(samples: Samples) -> Part | None:
    broken = [s for split in ("test", "unlabelled") for s in samples.of("tuned", split).values() if s.problem]
    rows = tuple((s.split, s.problem, s.answer, s.finish) for s in broken[:NUM_FLIPS])
    return (
        Part("Answers of the tune that do not fit the schema", (Table(("split", "problem", "answer", "finish"), rows),))
        if rows
        else None
    )


def _power(verdict: Verdict) -> Part:
    rows = tuple(
        (
            gate.id,
            gate.n,
            gate.num_groups,
            percent(gate.mde),
            "" if gate.n_needed is None else gate.n_needed,
            gate.method,
        )
        for gate in (*verdict.gates, *verdict.prompt_gates)
    )
    words = (
        f"Every test is one-sided at {verdict.policy.level:.3g}. The detectable effect is the true gain that a run of "
        "this size finds four times out of five; where a gate is undecided, the items needed are named."
    )
    return Part(
        "Power", (words, Table(("gate", "items", "groups", "detectable effect", "items needed", "method"), rows))
    )


def _ledger(verdict: Verdict) -> Part:
    look, alpha = verdict.policy.looks, verdict.policy.alpha
    data = verdict.header.get("data", {})
    words = (
        f"This is look {look} at this test set, so every test runs at {alpha:g} / {look} = {verdict.policy.level:.3g}."
    )
    rows = tuple((key, value) for key, value in {**data, **verdict.header.get("inputs", {})}.items() if value != "")
    return Part("Ledger and inputs", (words, Table(("what", "value"), rows)))

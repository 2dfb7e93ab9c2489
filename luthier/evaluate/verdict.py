"""The decision: samples in, one verdict out. Pure, and byte for byte reproducible.

SHIP_TUNE: every blocking gate of the tune passes. If any fails: SHIP_PROMPT when the prompt arm beats base by the same
minimum effect and passes the format gate (where there is one), else SHIP_NOTHING. No gate fails but some are undecided:
INCONCLUSIVE. A forfeited run (no dev split, so nothing could be chosen fairly) is INCONCLUSIVE with that reason.
Shipping needs ALL gates, which is an intersection-union test: each at the same level, no further correction.
Exit codes: 0 SHIP_TUNE, 10 SHIP_PROMPT, 11 SHIP_NOTHING, 12 INCONCLUSIVE; `require` maps more of them to 0.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.evaluate.gap import gap_gate
from luthier.evaluate.gate import Gate, Status, format_gate, perplexity_gate, rounded, superiority_gate
from luthier.evaluate.policy import Policy, policy_from_json
from luthier.evaluate.samples import ARMS, Samples, read_samples
from luthier.graders.registry import grader

SCHEMA_VERSION = 1
EXIT_CODES = {"SHIP_TUNE": 0, "SHIP_PROMPT": 10, "SHIP_NOTHING": 11, "INCONCLUSIVE": 12}
ALLOWED = {
    None: ("SHIP_TUNE",),
    "tune": ("SHIP_TUNE",),
    "prompt": ("SHIP_TUNE", "SHIP_PROMPT"),
    "any": tuple(EXIT_CODES),
}
NOT_RUN = {
    "general": "benchmark suites for forgotten skills: not part of this evaluation",
    "safety": "harmful requests: not part of this evaluation",
    "over_refusal": "refusal of harmless requests: not part of this evaluation",
    "bias": "counterfactual swaps: not part of this evaluation",
    "memorization": "verbatim training data in answers: not part of this evaluation",
    "latency": "time per token against base: not part of this evaluation",
    "cost": "cost per thousand requests: not part of this evaluation",
}


@dataclass(frozen=True)
class Verdict:
    """gates: what the tune must pass; prompt_gates: what the prompt must pass; advisory: what is said and decides
    nothing; not_run: gate -> why."""

    verdict: str
    reason: str
    exit_code: int
    policy: Policy
    gates: tuple[Gate, ...]
    prompt_gates: tuple[Gate, ...]
    advisory: tuple[Gate, ...]
    not_run: dict[str, str]
    metrics: dict[str, dict[str, float | None]]
    header: dict[str, Any]
    samples_digest: str

    def as_json(self) -> dict[str, Any]:
        """The content of verdict.json."""
        return {
            "schema_version": SCHEMA_VERSION,
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "reason": self.reason,
            "policy": self.policy.as_json(),
            "arms": self.header.get("arms", []),
            "data": self.header.get("data", {}),
            "inputs": self.header.get("inputs", {}),
            "environments": self.header.get("environments", {}),
            "gates": [gate.as_json() for gate in self.gates],
            "prompt_gates": [gate.as_json() for gate in self.prompt_gates],
            "advisory": [gate.as_json() for gate in self.advisory],
            "not_run": self.not_run,
            "metrics": self.metrics,
            "samples_sha256": self.samples_digest,
        }

    def as_text(self) -> str:
        """verdict.json as bytes on disk have it (UTF-8, sorted keys, final newline)."""
        return json.dumps(self.as_json(), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def combine(tune: Sequence[Status], prompt: Sequence[Status]) -> str:
    """The verdict from the statuses of the tune's blocking gates and the prompt's gates. No gate at all fails."""
    if tune and all(status == "PASS" for status in tune):
        return "SHIP_TUNE"
    if tune and "FAIL" not in tune:
        return "INCONCLUSIVE"
    return "SHIP_PROMPT" if prompt and all(status == "PASS" for status in prompt) else "SHIP_NOTHING"


def exit_code(verdict: str, require: str | None = None) -> int:
    """0 for the verdicts that `require` allows, else the verdict's own code."""
    return 0 if verdict in ALLOWED[require] else EXIT_CODES[verdict]


def decide(samples_path: Path, *, require: str | None = None) -> Verdict:
    """Read samples.jsonl and judge it; the same file gives the same verdict. `require` overrides the policy's."""
    return judge(read_samples(samples_path), require=require)


def judge(samples: Samples, *, require: str | None = None) -> Verdict:
    """Run every gate on samples in memory."""
    policy = policy_from_json(samples.header.get("policy"))
    gates = [
        superiority_gate("task_vs_prompt", "tuned", "prompt", samples, policy),
        superiority_gate("task_vs_base", "tuned", "base", samples, policy),
    ]
    prompt_gates = [superiority_gate("prompt_vs_base", "prompt", "base", samples, policy)]
    not_run = dict(NOT_RUN)
    if policy.max_failure_rate is None:
        not_run["format"] = "switched off, or no JSON Schema was given (data.json_schema)"
    else:
        gates.append(format_gate("format", "tuned", samples, policy))
        prompt_gates.append(format_gate("prompt_format", "prompt", samples, policy, need_unlabelled=False))
    if policy.perplexity_margin is None:
        not_run["perplexity"] = "switched off (evaluate.gates.perplexity)"
    else:
        gates.append(perplexity_gate("perplexity", samples.documents, policy))
    advisory = []
    if policy.gap_margin is None:
        not_run["generalisation"] = "advisory and switched off (evaluate.gates.generalisation)"
    else:
        advisory.append(gap_gate(samples.header.get("generalisation"), policy))
    verdict = combine([gate.status for gate in gates], [gate.status for gate in prompt_gates])
    reason = _reason(verdict, gates, prompt_gates)
    if forfeit := samples.header.get("forfeit"):
        verdict, reason = "INCONCLUSIVE", f"the verdict is forfeited: {forfeit}"
    return Verdict(
        verdict=verdict,
        reason=reason,
        exit_code=exit_code(verdict, require if require is not None else policy.require),
        policy=policy,
        gates=tuple(gates),
        prompt_gates=tuple(prompt_gates),
        advisory=tuple(advisory),
        not_run=not_run,
        metrics=_metrics(samples, policy),
        header=samples.header,
        samples_digest=samples.digest,
    )


def _reason(verdict: str, gates: Sequence[Gate], prompt_gates: Sequence[Gate]) -> str:
    """The verdict sentence's second half: the gates that decided it."""
    if verdict == "SHIP_TUNE":
        return f"all {len(gates)} blocking gates pass; {gates[0].reason}"
    if verdict == "INCONCLUSIVE":
        open_gates = [gate for gate in gates if gate.status == "INCONCLUSIVE"]
        return "; ".join(f"{gate.id} is open, {gate.reason}; {gate.next_action}" for gate in open_gates)
    failed = (
        "; ".join(f"{gate.id} fails, {gate.reason}" for gate in gates if gate.status == "FAIL") or "no gate was run"
    )
    if verdict == "SHIP_PROMPT":
        return f"the tune does not earn its place ({failed}), but {prompt_gates[0].reason}"
    undecided = "".join(f"; {gate.id}: {gate.status}" for gate in prompt_gates if gate.status != "PASS")
    return f"{failed}{undecided}"


def _metrics(samples: Samples, policy: Policy) -> dict[str, dict[str, float | None]]:
    """Metric -> arm -> figure over the test cases; None where a score is missing."""
    figures: dict[str, dict[str, float | None]] = {}
    for name in (policy.metric, *policy.metrics):
        figures[name] = {}
        for arm in ARMS:
            answers, metric = samples.of(arm), grader(name)
            items = [i for sample in answers.values() if metric.fits(i := sample.scores.get(name))]
            complete = 0 < len(items) == len(answers)
            figures[name][arm] = rounded(metric.figure(items)) if complete else None
    return figures

"""Section `evaluate`: arms, metrics, gates and the policy of the verdict."""

from typing import Annotated, Literal

from pydantic import Field

from luthier.config.base import Seed, Spec
from luthier.config.graders import GradersSpec

Metric = Literal[
    "exact_match",
    "token_f1",
    "accuracy",
    "macro_f1",
    "json_exact",
    "json_field_accuracy",
    "json_valid",
    "rouge_l",
    "bleu",
    "numeric",
    "regex",
    "unit_tests",
    "grounded",
    "all_of",
]


class PromptSearchSpec(Spec):
    """The best-prompt arm: candidates = shots x instructions, chosen on dev rows only."""

    shots: tuple[Annotated[int, Field(ge=0, le=32)], ...] = (0, 2, 4)
    """Numbers of solved training examples shown before the question."""
    instructions: tuple[str, ...] = ("",)
    """Instruction variants put in front of the system message; "" = none."""
    dev_rows: Annotated[int, Field(ge=1)] = 24
    """Dev rows on which every candidate is tried."""
    finalists: Annotated[int, Field(ge=1)] = 2
    final_rows: Annotated[int, Field(ge=0)] = 48
    """Further dev rows on which the finalists are tried."""
    seed: Seed = 0


class FormatGateSpec(Spec):
    """Answers parse as JSON and satisfy data.json_schema. Runs when a schema is given."""

    max_failure_rate: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """The one-sided 95% upper bound of the failure rate must not exceed this (0.01 = 300 of 300)."""


class PerplexityGateSpec(Spec):
    """General English is not forgotten."""

    margin: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Largest tolerated relative increase of bits per byte on the general text sample."""


class GapGateSpec(Spec):
    """The tune answers rows that it was not trained on about as well as those it was. Advisory: it blocks nothing."""

    margin: Annotated[float, Field(gt=0, le=10)] = 0.5
    """Largest tolerated difference in nats per token of the reference answers, test rows less training rows."""


class GatesSpec(Spec):
    """Gates; null switches one off, and the report says so. All but generalisation block."""

    format: FormatGateSpec | None = FormatGateSpec()
    perplexity: PerplexityGateSpec | None = PerplexityGateSpec()
    generalisation: GapGateSpec | None = None


class EvaluateSpec(Spec):
    """Three arms on sealed rows, paired statistics, one verdict."""

    metric: Metric = "exact_match"
    """The metric that the task gate decides on."""
    metrics: tuple[Metric, ...] = ()
    """Further metrics, reported only."""
    max_new_tokens: Annotated[int, Field(ge=1, le=8192)] = 64
    temperature: Annotated[float, Field(ge=0, le=5)] = 0.0
    """0 = greedy."""
    seed: Seed = 0
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Prompts decoded together."""
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """One-sided error level of every test."""
    min_effect: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Smallest gain over the best prompt that is worth hosting a tune."""
    min_pairs: Annotated[int, Field(ge=2)] = 30
    """Fewer test rows than this are inconclusive whatever they say."""
    prompt: PromptSearchSpec = PromptSearchSpec()
    gates: GatesSpec = GatesSpec()
    graders: GradersSpec = GradersSpec()
    require: Literal["tune", "prompt", "any"] | None = None
    """Map allowed verdicts to exit code 0 for CI: tune = only a shipped tune, prompt = also a prompt, any = every
    verdict."""

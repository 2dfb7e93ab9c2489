"""Section `loss`: the objective. Which key belongs to which kind, and its default there, is one table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from luthier.config.base import Spec

Kind = Literal[
    "sft", "continued", "distill", "dpo", "orpo", "simpo", "cpo", "kto", "reward", "classify", "regress", "grpo", "ppo",
    "gkd",
]  # fmt: skip
Sequences = Literal["turns", "documents", "pairs", "labelled", "scored", "scored_pairs", "prompts"]

_TOKENS = {"label_smoothing": 0.0, "neftune_alpha": 0.0, "kl_to_base": 0.0}
OPTIONS: dict[str, dict[str, Any]] = {
    "sft": {"earlier_turns": 1.0, **_TOKENS},
    "continued": {"chunk_overlap": 64, **_TOKENS},
    "distill": {
        "earlier_turns": 1.0, "teacher": None, "divergence": "forward_kl", "js_beta": None, "temperature": 1.0,
        "pull": 1.0, "nll_weight": 0.0, "neftune_alpha": 0.0,
    },
    "dpo": {"variant": "sigmoid", "beta": 0.1, "label_smoothing": 0.0, "reference": "base"},
    "orpo": {"beta": 0.1},
    "simpo": {"beta": 2.0, "simpo_gamma": 1.0, "label_smoothing": 0.0},
    "cpo": {"beta": 0.1, "nll_weight": 1.0, "label_smoothing": 0.0},
    "kto": {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
    "reward": {"margin_column": None, "center_weight": 0.0},
    "classify": {"label_smoothing": 0.0},
    "regress": {},
    "grpo": {"variant": "grpo", "clip_low": 0.2, "clip_high": None, "kl_to_base": 0.0},
    "ppo": {
        "clip_low": 0.2, "clip_high": None, "kl_to_base": 0.05, "gamma": 1.0, "gae_lambda": 0.95, "value_clip": 0.2,
        "value_coef": 0.1,
    },
    "gkd": {"teacher": None, "divergence": "reverse_kl", "js_beta": None, "temperature": 1.0, "on_policy": 1.0},
}  # fmt: skip
"""kind -> the keys that it reads, with their defaults."""
SEQUENCES: dict[str, Sequences] = {
    "sft": "turns", "distill": "turns", "continued": "documents", "dpo": "pairs", "orpo": "pairs", "simpo": "pairs",
    "cpo": "pairs", "kto": "labelled", "reward": "scored_pairs", "classify": "scored", "regress": "scored",
    "grpo": "prompts", "ppo": "prompts", "gkd": "prompts",
}  # fmt: skip
"""kind -> what a row becomes for it (data/sequences.py)."""
_WITH_SMOOTHING = ("sigmoid", "robust")
VARIANTS = {
    "dpo": ("sigmoid", "ipo", "hinge", "robust", "sigmoid_norm"),
    "grpo": ("grpo", "dr_grpo", "dapo"),
}  # fmt: skip


class LossSpec(Spec):
    """What is minimised. A key that the kind does not read is an error; null = the kind's default."""

    kind: Kind = "sft"
    """sft: cross entropy of the assistant's tokens. continued: of plain documents. distill: a teacher's distribution.
    dpo, orpo, simpo, cpo: preference pairs. kto: single answers marked good or bad. reward: a score head on pairs.
    classify, regress: a score head on the answer as a class or a number. grpo, ppo: answers that the model gives
    itself (section rollouts), rewarded; ppo trains a value head beside the model, which is not exported. gkd: distill,
    on answers that the model gives itself (on-policy distillation)."""
    earlier_turns: Annotated[float, Field(ge=0, le=1)] | None = None
    """Weight of the assistant turns before the last (sft, distill): 1 = all turns alike, 0 = the last turn only."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] | None = None
    """sft, continued, classify: share of the target spread over all tokens or classes. dpo, simpo, cpo: assumed share
    of flipped pairs (cDPO; with variant robust the unbiased form)."""
    neftune_alpha: Annotated[float, Field(ge=0)] | None = None
    """Noise on the embeddings while training, NEFTune (5 is usual; 0 = none)."""
    kl_to_base: Annotated[float, Field(ge=0)] | None = None
    """Weight of KL(tune || base) at every trained token (sft, continued, grpo, ppo): holds the tune near its base;
    0 = off. grpo and ppo estimate it from the sampled token alone; ppo takes it off the token's reward."""
    chunk_overlap: Annotated[int, Field(ge=1)] | None = None
    """Tokens of a long document that the next chunk repeats as context, without loss (continued). Every token but the
    first carries loss exactly once."""
    variant: Literal["sigmoid", "ipo", "hinge", "robust", "sigmoid_norm", "grpo", "dr_grpo", "dapo"] | None = None
    """Form of dpo (sigmoid_norm is DPO on log-ratios per token), or of grpo: grpo averages over the tokens of an answer
    and divides advantages by the group's deviation; dr_grpo does neither, dapo averages over all tokens of a step."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] | None = None
    """grpo, ppo: how far a token may become less likely in one round and still be pulled."""
    clip_high: Annotated[float, Field(gt=0)] | None = None
    """grpo, ppo: how far it may become more likely; null = 0.28 for dapo, clip_low for the rest."""
    gamma: Annotated[float, Field(gt=0, le=1)] | None = None
    """ppo: what a reward one token later is worth."""
    gae_lambda: Annotated[float, Field(ge=0, le=1)] | None = None
    """ppo: generalised advantage estimation: 1 = rewards as they came (no bias), 0 = the value head's word for all that
    follows the next token (no variance)."""
    value_clip: Annotated[float, Field(gt=0)] | None = None
    """ppo: how far a value may move in one round and still be pulled."""
    value_coef: Annotated[float, Field(gt=0)] | None = None
    """ppo: weight of the value head's loss beside the policy's."""
    beta: Annotated[float, Field(gt=0)] | None = None
    """Strength of the preference term; for dpo and kto also how dear leaving the reference is."""
    reference: Literal["base", "none"] | None = None
    """dpo: log-probabilities of the base (adapters off), computed once and kept; none = a uniform reference."""
    simpo_gamma: Annotated[float, Field(ge=0)] | None = None
    """Margin that simpo asks for, in units of beta times nats per token."""
    nll_weight: Annotated[float, Field(ge=0)] | None = None
    """Weight of the plain cross entropy beside the rest (cpo: of the chosen answer; distill: of the data)."""
    desirable_weight: Annotated[float, Field(gt=0)] | None = None
    """kto: weight of the good answers."""
    undesirable_weight: Annotated[float, Field(gt=0)] | None = None
    """kto: weight of the bad answers."""
    margin_column: str | None = None
    """reward: column that says by how much the chosen answer is better; null = 0 for all."""
    center_weight: Annotated[float, Field(ge=0)] | None = None
    """reward: weight of the squared sum of both scores, which keeps them around 0."""
    teacher: str | None = None
    """distill, gkd: folder of the teacher model (relative to the project file), with the base's tokenizer; or the
    output_dir of another project: the one build in it."""
    divergence: Literal["forward_kl", "reverse_kl", "js"] | None = None
    """distill, gkd: what is minimised between teacher and student at every trained token, over the whole vocabulary."""
    js_beta: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Of divergence js: the teacher's share in the mixture that both are held against; null = 0.5. Towards 0 it pulls
    as forward_kl does, towards 1 as reverse_kl."""
    on_policy: Annotated[float, Field(gt=0, le=1)] | None = None
    """gkd: share of the prompts that the student answers itself; for the rest the row's own answer is learnt from."""
    temperature: Annotated[float, Field(gt=0)] | None = None
    """distill, gkd: both distributions are softened by it."""
    pull: Annotated[float, Field(ge=0)] | None = None
    """distill: weight of the divergence."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        """Refuses what the kind does not read and fills in its defaults."""
        kind = given.get("kind", "sft") if isinstance(given, Mapping) else None
        if kind not in OPTIONS:
            return given  # the field itself is refused, in its own words
        foreign = [key for key in given if key in cls.model_fields and key != "kind" and key not in OPTIONS[kind]]
        foreign = [key for key in foreign if given[key] is not None]
        if foreign:
            raise ValueError(_not_read(kind, foreign[0]))
        set_keys = {key: value for key, value in given.items() if value is not None}
        return {**OPTIONS[kind], **set_keys}

    @model_validator(mode="after")
    def _fits_together(self) -> LossSpec:
        if self.variant not in (None, *VARIANTS.get(self.kind, ())):
            raise ValueError(f"variant {self.variant} is none of {self.kind}: {', '.join(VARIANTS[self.kind])}")
        if self.kind == "dpo" and self.label_smoothing and self.variant not in _WITH_SMOOTHING:
            raise ValueError(
                f"label_smoothing is not read by variant {self.variant} (only sigmoid and robust): drop it"
            )
        if self.kind in ("distill", "gkd") and not self.teacher:
            raise ValueError(
                f"{self.kind} needs a teacher: give loss.teacher, a model folder with the base's tokenizer"
            )
        if self.js_beta is not None and self.divergence != "js":
            raise ValueError(f"js_beta is not read by divergence {self.divergence} (only js): drop it")
        if self.kind == "distill" and not self.pull:
            raise ValueError("loss.pull is 0: nothing would be learnt from the teacher; loss.kind: sft needs none")
        return self

    @property
    def sequences(self) -> Sequences:
        """What a row becomes for this objective."""
        return SEQUENCES[self.kind]

    @property
    def is_online(self) -> bool:
        """Whether it learns from answers that the model gives while it is trained."""
        return self.sequences == "prompts"

    @property
    def needs_rewards(self) -> bool:
        """Whether what the model says itself is rewarded; otherwise a teacher judges it, token by token."""
        return self.is_online and self.kind != "gkd"

    @property
    def upper_clip(self) -> float:
        """loss.clip_high, or what null means."""
        return self.clip_high or (0.28 if self.variant == "dapo" else self.clip_low or 0.2)

    @property
    def is_plain(self) -> bool:
        """Whether all it looks at is one pass over each row as it was prepared: plain sft."""
        return self.kind == "sft" and not (self.neftune_alpha or self.kl_to_base)

    @property
    def compares_with_base(self) -> bool:
        """Whether it asks the base, its adapters off."""
        return self.kind == "kto" or self.reference == "base" or bool(self.kl_to_base)

    @property
    def compares(self) -> bool:
        """Whether it learns from compared or judged answers."""
        return self.sequences in ("pairs", "labelled", "scored_pairs")

    @property
    def figures(self) -> tuple[str, ...]:
        """Dev figures that this loss tells beside itself and that can choose a checkpoint."""
        if self.is_online:
            return ("reward",) if self.needs_rewards else ("teacher_kl",)
        if self.kind in ("classify", "regress"):
            return ("accuracy",) if self.kind == "classify" else ("absolute_error",)
        return ("reward_accuracy", "reward_margin") if self.sequences in ("pairs", "labelled", "scored_pairs") else ()

    @property
    def has_value_head(self) -> bool:
        """Whether a head that tells what an answer will be worth is trained beside the model."""
        return self.kind == "ppo"

    @property
    def has_score_head(self) -> bool:
        """Whether what is trained ends in a score head instead of words."""
        return self.sequences in ("scored", "scored_pairs")


def _not_read(kind: str, key: str) -> str:
    if key == "reference":
        return f"kind {kind} has no reference model: drop loss.reference"
    readers = ", ".join(name for name, options in OPTIONS.items() if key in options)
    return f"kind {kind} does not read {key} (read by {readers}): drop it, or choose another loss.kind"

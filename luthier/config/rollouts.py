"""Section `rollouts`: how an online objective (grpo, ppo) samples answers, and what rewards them."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from luthier.config.base import Spec
from luthier.config.server import ServerSpec

RewardName = Literal[
    "exact_match", "token_f1", "accuracy", "json_exact", "json_field_accuracy", "json_valid", "rouge_l", "numeric",
    "regex", "unit_tests", "grounded",
]  # fmt: skip


class RolloutsSpec(Spec):
    """One round: prompts are answered by the model as it stands, the answers are rewarded, then learnt from."""

    rewards: dict[RewardName, float] = Field(default={})
    """Reward of an answer: metric -> weight; the rewards are multiplied by their weights and added. Metrics read
    data.json_schema and evaluate.graders; json_valid holds an answer against the schema. A metric that raises, hangs
    or gives no number costs that answer."""
    reward_model: str | None = None
    """Adapter folder of a reward model (loss.kind: reward) on the same base, relative to the project file; its score is
    added to the metrics' rewards. It is a second copy of the base in memory, in float32."""
    reward_model_weight: Annotated[float, Field(gt=0)] = 1.0
    """What its score is multiplied by."""
    reward_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    """An answer that a metric takes longer to reward is left out."""
    prompts: Annotated[int, Field(ge=1)] = 8
    """Prompts of a round."""
    answers: Annotated[int, Field(ge=1)] = 8
    """Answers to each of them: its group. grpo compares within the group, so it needs at least 2; for ppo 1 will
    do."""
    max_new_tokens: Annotated[int, Field(ge=1, le=8192)] = 64
    """Longest answer. Prompts that leave less room in train.sequence_len are quarantined."""
    temperature: Annotated[float, Field(gt=0, le=5)] = 1.0
    """Of the sampling, and of the log-probabilities that are learnt from."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Answers decoded together."""
    inner_epochs: Annotated[int, Field(ge=1)] = 1
    """How often a round's answers are learnt from."""
    inner_batches: Annotated[int, Field(ge=1)] = 1
    """Optimizer steps that one pass over a round is dealt to, by prompts."""
    resample: Annotated[int, Field(ge=1, le=16)] = 1
    """A round asks up to so many times `prompts` prompts, until `prompts` of them have answers with different rewards;
    those without are left out (DAPO's dynamic sampling). 1 = every prompt is kept."""
    drop_overlong: bool = False
    """Answers that max_new_tokens cut off are compared with, but not learnt from (DAPO's overlong filtering)."""
    dev_prompts: Annotated[int, Field(ge=1)] = 64
    """Dev prompts answered and rewarded at each evaluation, with evaluate.temperature."""

    server: ServerSpec | None = None
    """A server that draws the answers of the rounds; null = the model in training itself. Answers to dev prompts are
    always its own."""

    @model_validator(mode="after")
    def _rewards_can_be_told_apart(self) -> "RolloutsSpec":
        if self.rewards and not any(self.rewards.values()) and not self.reward_model:
            raise ValueError("every reward has the weight 0: all answers would be alike")
        if self.inner_batches > self.prompts:
            raise ValueError(
                f"inner_batches {self.inner_batches} is more than prompts {self.prompts}: some steps had none"
            )
        return self

    @property
    def has_reward(self) -> bool:
        """Whether anything rewards an answer."""
        return bool(self.rewards) or self.reward_model is not None

    @property
    def steps_of_round(self) -> int:
        """Optimizer steps that a round is learnt from."""
        return self.inner_epochs * self.inner_batches

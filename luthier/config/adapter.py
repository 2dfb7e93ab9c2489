"""Section `adapter`: what is trainable."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from luthier.config.adapter_methods import FACTS, MethodFacts
from luthier.config.base import Spec

Rank = Annotated[int, Field(ge=1, le=4096)]


class AdapterSpec(Spec):
    """Which method adapts the base, and its settings. docs/training.md says what each is."""

    method: Literal[
        "lora", "rslora", "lora_plus", "lora_fa", "dora", "pissa", "olora", "eva", "loftq", "vera", "adalora",
        "longlora", "qlora", "qdora", "ia3", "prompt_tuning", "p_tuning", "prefix_tuning", "houlsby", "pfeiffer",
        "full", "galore", "layers", "head",
    ] = "lora"  # fmt: skip
    """lora and its kin train low-rank updates; ia3 factors of keys, values and feed-forward inputs; prompt_tuning,
    p_tuning and prefix_tuning virtual tokens before every row; houlsby and pfeiffer small networks behind the blocks
    of every layer; longlora LoRA, embedding and norms under sparse attention; full every weight, galore every weight
    with an optimizer of low rank, layers those of the top_layers, head the output head. qlora, qdora and loftq need
    model.dtype: nf4."""
    lora_r: Rank = 16
    """Rank: 4-8 for simple tasks, 16-32 usual, 64 for complex ones; vera wants 256. adalora: the mean rank at the
    end; galore: directions of the optimizer; houlsby, pfeiffer: width of the bottleneck."""
    lora_alpha: Annotated[float, Field(gt=0)] = 32.0
    """Scaling numerator: the update is multiplied by alpha / r (alpha / sqrt(r) with use_rslora or method rslora)."""
    lora_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout on the adapter's input."""
    lora_target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Linear layers that get an adapter: all (except the head), or names such as q_proj, v_proj. ia3: all-linear means
    its paper's, which are keys, values and the feed-forward block's last."""
    top_layers: Annotated[int, Field(ge=1)] | None = None
    """Adapt only the last k decoder layers; null = all (method layers needs it)."""
    rank_pattern: dict[str, Rank] = {}  # noqa: RUF012 - pydantic copies it
    """Other ranks for some layers: the end of a name, such as q_proj or 3.mlp.up_proj, to a rank."""
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = {}  # noqa: RUF012
    """Other alphas for some layers, named as in rank_pattern."""
    modules_to_save: tuple[Literal["embed_tokens", "lm_head", "norms"], ...] = ()
    """Parts of the base that are trained in full beside a low-rank method. Of a tied base embed_tokens is both."""
    use_rslora: bool = False
    """Rank-stabilised scaling (arXiv 2312.03732) for any low-rank method."""
    loraplus_lr_ratio: Annotated[float, Field(ge=1)] = 16.0
    """lora_plus: rate of B over train.learning_rate, which A keeps."""
    vera_d_initial: Annotated[float, Field(gt=0)] = 0.1
    """vera: start of the vector d."""
    adalora_init_r: Rank | None = None
    """adalora: rank at the start; null = 1.5 times lora_r."""
    adalora_start: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """adalora: share of the steps before the first rank is taken away."""
    adalora_end: Annotated[float, Field(gt=0, le=1)] = 0.7
    """adalora: share of the steps after which the ranks stand."""
    adalora_interval: Annotated[int, Field(ge=1)] = 5
    """adalora: steps from one cut to the next."""
    adalora_orthogonal: Annotated[float, Field(ge=0)] = 0.5
    """adalora: weight of the penalty that keeps A and B orthogonal."""
    longlora_group: Annotated[int, Field(ge=2)] = 256
    """longlora: tokens that see each other in training; its paper takes a quarter of the context. Evaluation and
    serving see everything."""
    galore_interval: Annotated[int, Field(ge=1)] = 200
    """galore: updates from one choice of subspaces (of lora_r directions) to the next."""
    galore_scale: Annotated[float, Field(gt=0)] = 1.0
    """galore: factor of a projected step; the paper's are 0.25 (pretraining) and 4 (fine-tuning at rank 4)."""
    num_virtual_tokens: Annotated[int, Field(ge=1, le=4096)] = 20
    """prompt_tuning, p_tuning, prefix_tuning: tokens before every row. They come on top of train.sequence_len."""
    prompt_init_text: str = ""
    """prompt_tuning, prefix_tuning: text that the virtual tokens start as, such as the task in words; empty = words
    drawn from the vocabulary."""
    cache_frozen: Literal["auto", "never"] = "auto"
    """What layers below everything trained compute is kept per row from the first epoch on, where there is more than
    one epoch and memory for it; equal to rounding."""

    @property
    def saved_parts(self) -> tuple[str, ...]:
        """modules_to_save, and the parts that the method always trains in full."""
        own = ("embed_tokens", "norms") if self.method == "longlora" else ()
        return tuple(dict.fromkeys((*self.modules_to_save, *own)))

    @property
    def facts(self) -> MethodFacts:
        """What the method is."""
        return FACTS[self.method]

    @field_validator("lora_target_modules")
    @classmethod
    def _names_a_layer(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not value or not all(name.strip() for name in value):
            raise ValueError(
                "no layer is named, so nothing could be trained: give all-linear, or names such as [q_proj]"
            )
        return value

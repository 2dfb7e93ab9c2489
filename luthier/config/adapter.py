"""Section `adapter`: what is trainable."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from luthier.config.base import Spec


class AdapterSpec(Spec):
    """Low-rank adapters (LoRA, arXiv 2106.09685)."""

    method: Literal["lora"] = "lora"
    lora_r: Annotated[int, Field(ge=1, le=4096)] = 16
    """Rank: 4-8 for simple tasks, 16-32 usual, 64 for complex ones."""
    lora_alpha: Annotated[float, Field(gt=0)] = 32.0
    """Scaling numerator: the update is multiplied by alpha / r (alpha / sqrt(r) with use_rslora)."""
    lora_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout on the adapter's input."""
    lora_target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Linear layers that get an adapter: all (except the head), or names such as q_proj, v_proj."""
    use_rslora: bool = False
    """Rank-stabilised scaling (arXiv 2312.03732)."""

    @field_validator("lora_target_modules")
    @classmethod
    def _names_a_layer(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not value or not all(name.strip() for name in value):
            raise ValueError(
                "no layer is named, so nothing could be trained: give all-linear, or names such as [q_proj]"
            )
        return value

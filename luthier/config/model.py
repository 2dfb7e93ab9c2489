"""Section `model`: which foundation model is the base, and what is made of it before training."""

from typing import Annotated, Literal

from pydantic import Field

from luthier.config.base import Spec


class RopeScalingSpec(Spec):
    """Stretches the base's rotary positions, so that it is trained, judged and shipped with a longer context."""

    rope_type: Literal["linear", "ntk", "yarn", "llama3"] = "yarn"
    """linear: every position divided by the factor (position interpolation, arXiv 2306.15595); ntk: a larger
    rope_theta; yarn: low frequencies stretched, high ones kept (arXiv 2309.00071); llama3: the same by Llama 3.1's
    rule. dynamic is not offered: it rotates a token differently at every length of its row, so training and a server's
    cache would not see the same model."""
    factor: Annotated[float, Field(gt=1, le=1024)]
    """How many times the base's own context."""


class ModelSpec(Spec):
    """The base model."""

    base: str = "smollm2-135m"
    """An alias (smollm2-135m), a local Hugging Face folder, the output_dir of another project (the one build in it is
    the base: continued pre-training, then a task), or a hub id (only with allow_hub)."""
    allow_hub: bool = False
    """Whether a hub id may be downloaded. Never done unasked."""
    dtype: Literal["float32", "bfloat16", "int8", "nf4", "auto"] = "float32"
    """Type of the frozen weights while training: float32 (exact), bfloat16, int8 (8-bit products, rest float32), nf4
    (4-bit NormalFloat, doubly quantised, written out for every product: least memory, for adapter.method qlora, qdora
    and loftq), or auto (the fastest by the start-up probe). Adapters are always float32; what is judged and shipped is
    always merged in float32, with nf4 onto the base as rounded to 4 bits."""
    rope_scaling: RopeScalingSpec | None = None
    """A longer context than the base was made for, such as {rope_type: yarn, factor: 4}; null = the base's own."""

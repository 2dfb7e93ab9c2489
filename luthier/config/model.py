"""Section `model`: which foundation model is the base."""

from typing import Literal

from luthier.config.base import Spec


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

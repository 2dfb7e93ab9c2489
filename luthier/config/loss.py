"""Section `loss`: the objective."""

from typing import Literal

from luthier.config.base import Spec


class LossSpec(Spec):
    """What is minimised."""

    kind: Literal["sft"] = "sft"
    """sft: cross entropy of the assistant's tokens."""

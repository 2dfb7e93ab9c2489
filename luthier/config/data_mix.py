"""Section `data.mix`: how often each training row is seen, and how much general data is mixed in."""

from typing import Annotated, Literal

from pydantic import Field

from luthier.config.base import Seed, Spec

Weight = Annotated[float, Field(ge=0.0, le=20.0)]


class ReplaySpec(Spec):
    """General data among the training rows, against forgetting."""

    files: tuple[str, ...] = ()
    """Files or globs of general conversations or documents; their format is found by itself. They only train."""
    share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    """Share of the training rows that they make up (0.10 to 0.20 is usual)."""


class MixSpec(Spec):
    """Repeats and leaves out training rows by a plan; dev and test are never touched."""

    weights: dict[str, Weight] = Field(default={})
    """File or glob -> how often its rows are seen: 2 = twice an epoch, 0.5 = half of them; others 1."""
    temperature: Annotated[float, Field(ge=1.0, le=100.0)] = 1.0
    """Above 1, files are evened out: each is seen in proportion to its rows to the power 1/temperature."""
    upsample: Literal["none", "answer", "stratum"] = "none"
    """Repeats rows of rare answers, or of rare values of data.stratify_by."""
    upsample_power: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """How far rare classes are lifted: 1 = all equally frequent, 0.5 = half way (on a log scale)."""
    upsample_most: Annotated[float, Field(ge=1.0, le=20.0)] = 4.0
    """No row is repeated more often than this by upsampling."""
    seed: Seed = 0
    """Which rows are repeated or left out when the factor is not whole."""
    replay: ReplaySpec = ReplaySpec()

    @property
    def is_on(self) -> bool:
        """Whether anything is repeated or left out."""
        return bool(self.weights) or self.temperature > 1 or self.upsample != "none" or bool(self.replay.files)

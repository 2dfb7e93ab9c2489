"""Section `data.style`: how the answers ought to sound. What they sound like stands beside it in the report."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from luthier.config.base import Spec


class StyleSpec(Spec):
    """The wished style of the training answers; what is left open is only measured."""

    words: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]] | None = None
    """Least and most words of an answer, such as [20, 120]."""
    person: Literal["any", "first", "second", "third"] = "any"
    """Who speaks: first (I, we), second (you), third (neither)."""
    formality: Literal["any", "formal", "casual"] = "any"
    """formal: without contractions, exclamation marks, emoji and slang; casual: with some of them."""
    bullets: Literal["any", "never", "always"] = "any"
    """Lists with bullets or numbers."""
    max_reading_grade: Annotated[float, Field(gt=0.0)] | None = None
    """Highest Flesch-Kincaid grade of an answer (8 is plain English)."""
    min_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.9
    """Least share of the answers that must be so."""
    policy: Literal["warn", "refuse"] = "warn"
    """What happens when fewer are."""

    @model_validator(mode="after")
    def _least_before_most(self) -> "StyleSpec":
        if self.words and self.words[0] > self.words[1]:
            raise ValueError(f"words: the least ({self.words[0]}) is more than the most ({self.words[1]})")
        return self

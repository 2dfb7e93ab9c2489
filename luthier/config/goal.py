"""Section `goal`: what the tune is for, in words. The report holds it against what was reached."""

from luthier.config.base import Spec


class GoalSpec(Spec):
    """Why this model is tuned, who answers for it, and how to go back."""

    target_behaviour: str = ""
    """What the tuned model should do, in one sentence."""
    success_criteria: tuple[str, ...] = ()
    """What must hold for the tune to be worth shipping, one criterion an entry. The report compares one that is, or
    ends after a colon with, `metric >= 50%`, `metric >= 0.5` or `metric > prompt` (an arm: base or prompt); any other
    is left to you."""
    owner: str = ""
    """Who answers for this model."""
    review_date: str = ""
    """When the decision is looked at again (YYYY-MM-DD)."""
    rollback_plan: str = ""
    """What to do when the shipped model misbehaves."""

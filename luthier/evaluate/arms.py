"""What an arm puts around a case: an instruction before the system message, solved examples before the question.

The base and the tuned arm ask the case as it is (the empty variant); the prompt arm asks it with the winner of
`search.py`. Examples come from training rows only, and are chosen without looking at any result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.evaluate.cases import Case
from luthier.store.publish import digest_json
from luthier.types import Message

LONG_EXAMPLE = 0.75
"""Quantile of the training examples' length above which a row is not used as an example."""


@dataclass(frozen=True)
class PromptVariant:
    """A prompt candidate: an instruction ('' = none) and a number of solved examples."""

    instruction: str = ""
    shots: int = 0

    @property
    def label(self) -> str:
        """Short name for tables."""
        words = f"{self.shots} examples" if self.shots else "no examples"
        return f"{words}, {self.instruction.splitlines()[0][:60]!r}" if self.instruction else words


def draw_examples(train: Sequence[Case], num_shots: int, *, seed: int) -> list[Case]:
    """num_shots cases of distinct groups, new answers first, none of the longest quarter; smaller draws are prefixes.

    The order is a hash of (seed, id): it does not depend on the order of rows. Fewer come back when there are fewer.
    """
    lengths = sorted(len(case.question) + len(case.reference) for case in train)
    longest = lengths[min(int(len(lengths) * LONG_EXAMPLE), len(lengths) - 1)] if lengths else 0
    short = [case for case in train if len(case.question) + len(case.reference) <= longest]
    ranked = sorted(short, key=lambda case: hashlib.sha256(f"{seed}:{case.id}".encode()).hexdigest())
    chosen: list[Case] = []
    while len(chosen) < num_shots:
        groups, answers = {case.group for case in chosen}, {case.reference for case in chosen}
        free = [case for case in ranked if case.group not in groups]
        if not free:
            break
        chosen.append(next((case for case in free if case.reference not in answers), free[0]))
    return chosen


def build_prompt(case: Case, variant: PromptVariant, examples: Sequence[Case]) -> tuple[Message, ...]:
    """The messages that are sent: [instruction + system], the examples as solved turns, then the question."""
    has_system = bool(case.prompt) and case.prompt[0]["role"] == "system"
    system = case.prompt[0]["content"] if has_system else ""
    whole = "\n\n".join(part for part in (variant.instruction.strip(), system) if part)
    turns: list[Message] = [Message(role="system", content=whole)] if whole else []
    for example in examples[: variant.shots]:
        turns += [message for message in example.prompt if message["role"] != "system"]
        turns.append(Message(role="assistant", content=example.reference))
    return (*turns, *(case.prompt[1:] if has_system else case.prompt))


def prompt_digest(messages: Sequence[Message]) -> str:
    """sha256 of the messages as sent."""
    return digest_json([[message["role"], message["content"]] for message in messages])

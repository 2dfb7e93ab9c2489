"""Which tokens of a conversation carry loss, derived by differential rendering: the template needs no marker.

The trained span of assistant turn i goes from the end of the prompt as serving renders it (messages before i,
generation prompt added) to the first stop token after the content, inclusive: what the model must produce at inference.
The end of the content is found by rendering once more with the content replaced by a sentinel. When the prompt is not a
prefix of the full text (templates that rewrite history), each assistant turn becomes a row of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.bases.tokenizer import Tokenizer
from luthier.chat.conversation import Rendered, Renderer, trained_turns
from luthier.errors import TemplateError

SENTINEL = "\U000f7a01luthier\U000f7a02"


@dataclass(frozen=True)
class Masked:
    """Token ids of a conversation and the trained spans [start, end) in tokens, one for each trained assistant turn."""

    ids: list[int]
    spans: list[tuple[int, int]]

    def flags(self) -> tuple[bool, ...]:
        """One flag a token: True where it carries loss."""
        trained = [False] * len(self.ids)
        for start, end in self.spans:
            trained[start:end] = [True] * (end - start)
        return tuple(trained)


class HistoryRewritten(TemplateError):
    """The prompt of a turn is not a prefix of the conversation that follows."""


def mask_conversation(tokenizer: Tokenizer, renderer: Renderer, messages: Sequence[Mapping[str, Any]]) -> list[Masked]:
    """One Masked with all assistant turns, or one for each turn when the template rewrites history.

    `messages` are checked and end with an assistant turn. Raises TemplateError when a mask cannot be derived.
    """
    turns = trained_turns(messages)
    try:
        return [_mask(tokenizer, renderer, messages, turns)]
    except HistoryRewritten:
        if len(turns) == 1:
            raise
    return [_mask(tokenizer, renderer, messages[: turn + 1], [turn]) for turn in turns]


def _mask(tokenizer: Tokenizer, renderer: Renderer, messages: Sequence[Mapping[str, Any]], turns: list[int]) -> Masked:
    full = renderer.render(messages)
    ids, offsets = tokenizer.encode_spans(full.text, full.literal_spans)
    starts = [offset[0] for offset in offsets]
    spans = []
    for turn in turns:
        prompt = renderer.render(messages[:turn], add_generation_prompt=True)
        num_prompt = _prefix_length(tokenizer, prompt, full, ids, turn)
        if messages[turn].get("tool_calls"):
            within = _calls_end(renderer, messages, turn, full.text)
            spans.append((num_prompt, _stop_within(tokenizer, ids, starts, within, turn)))
            continue
        content_end = _content_end(renderer, messages, turn, prompt.text, full.text)
        spans.append((num_prompt, _span_end(tokenizer, ids, starts, num_prompt, content_end, full.text)))
    return Masked(ids, spans)


def _prefix_length(tokenizer: Tokenizer, prompt: Rendered, full: Rendered, ids: list[int], turn: int) -> int:
    """Number of tokens of the prompt, which must be the first tokens of the conversation."""
    if not full.text.startswith(prompt.text):
        at = next((i for i, (a, b) in enumerate(zip(prompt.text, full.text, strict=False)) if a != b), 0)
        raise HistoryRewritten(
            f"message {turn}: the prompt is not a prefix of the training text: serving renders "
            f"{prompt.text[max(0, at - 20) : at + 30]!r}, training {full.text[max(0, at - 20) : at + 30]!r}",
            hint="give the template the settings that serving uses (for thinking models: enable_thinking=False)",
        )
    prompt_ids = tokenizer.encode_spans(prompt.text, prompt.literal_spans)[0]
    if ids[: len(prompt_ids)] != prompt_ids or len(ids) == len(prompt_ids):
        raise TemplateError(
            f"message {turn}: the answer's first characters join the prompt's last token",
            hint="remove white space at the start of the answer",
        )
    return len(prompt_ids)


def _content_end(renderer: Renderer, messages: Sequence[Mapping[str, Any]], turn: int, prompt: str, full: str) -> int:
    """Position in `full` (characters) behind the content of message `turn`."""
    probe = [*messages[:turn], {**messages[turn], "content": SENTINEL}, *messages[turn + 1 :]]
    with_sentinel = renderer.text(probe)
    _, found, after = with_sentinel.rpartition(SENTINEL)
    end = len(full) - len(after)
    content = messages[turn]["content"].strip()
    if not found or not full.endswith(after) or full[len(prompt) : end].strip() == "":
        raise HistoryRewritten(f"message {turn}: the template leaves this answer out or rewrites it when others follow")
    if not full[:end].rstrip().endswith(content):
        raise HistoryRewritten(f"message {turn}: the template changes the text of this answer")
    return end


def _calls_end(renderer: Renderer, messages: Sequence[Mapping[str, Any]], turn: int, full: str) -> tuple[int, int]:
    """(start, end) in characters between which the stop token of a turn with tool calls stands: behind the name of the
    last call, before the content of the next message."""
    calls = messages[turn]["tool_calls"]
    last = {**calls[-1], "function": {**calls[-1]["function"], "name": SENTINEL}}
    probe = [*messages[:turn], {**messages[turn], "tool_calls": [*calls[:-1], last]}, *messages[turn + 1 :]]
    _, found, after = renderer.text(probe).rpartition(SENTINEL)
    if not found or not full.endswith(after):
        raise HistoryRewritten(f"message {turn}: the template leaves this tool call out or rewrites it")
    end = len(full)
    if turn + 1 < len(messages):
        probe = [*messages[: turn + 1], {**messages[turn + 1], "content": SENTINEL}, *messages[turn + 2 :]]
        end = renderer.text(probe).find(SENTINEL)
    return len(full) - len(after), end


def _stop_within(tokenizer: Tokenizer, ids: list[int], starts: list[int], within: tuple[int, int], turn: int) -> int:
    """Index behind the first stop token that stands in `within` (characters)."""
    for index, start in enumerate(starts):
        if within[0] <= start < within[1] and ids[index] in tokenizer.stop_ids:
            return index + 1
    raise TemplateError(
        f"message {turn}: no stop token ends the tool call, so serving would not stop there",
        hint="the template must end an assistant turn that calls tools with a stop token",
    )


def _span_end(
    tokenizer: Tokenizer, ids: list[int], starts: list[int], num_prompt: int, content_end: int, text: str
) -> int:
    """Index behind the first stop token after the content; behind the content's end when none follows directly."""
    specials = set(tokenizer.control_tokens.values())
    index = num_prompt
    while index < len(ids) and starts[index] < content_end:
        index += 1
    end = index
    while index < len(ids):
        if ids[index] in tokenizer.stop_ids:
            return index + 1
        next_start = starts[index + 1] if index + 1 < len(ids) else len(text)
        if ids[index] not in specials and text[starts[index] : next_start].strip():
            break
        index += 1
    return end

"""From messages to rendered text, knowing which control-token look-alikes came from content and must stay plain text.

A user can type "<|im_end|>". Rendered and tokenised naively it becomes the real token (prompt injection, and a poisoned
loss mask). Here such places are found by differential rendering: each look-alike in a content is replaced by one
private-use character, the template is rendered, and where those characters come out lie the literal spans.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.bases.tokenizer import Tokenizer
from luthier.chat.template import ChatTemplate
from luthier.errors import TemplateError

ROLES = ("system", "user", "assistant", "tool")
DROPPED_HINT = "put its text into a user message: the model would never see it here"
_FIRST_MARK = 0xF6000  # private use: one character for each control token


@dataclass(frozen=True)
class Rendered:
    """Rendered text and the spans (start, end in characters, sorted) whose control tokens are plain text."""

    text: str
    literal_spans: tuple[tuple[int, int], ...] = ()


def checked(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages as plain dicts. Raises TemplateError naming the first message that cannot be rendered."""
    if not messages:
        raise TemplateError("the conversation has no messages", hint="give at least one user message")
    for index, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ROLES:
            raise TemplateError(f"message {index}: role {role!r} is unknown", hint=f"roles are {', '.join(ROLES)}")
        content = message.get("content")
        if not isinstance(content, str):
            found = "no content" if content is None else f"content of type {type(content).__name__}"
            raise TemplateError(
                f"message {index} ({role}): {found}, text is expected", hint="leave the row out or fill it"
            )
        if role == "assistant" and not content.strip():
            raise TemplateError(f"message {index}: empty assistant answer", hint="leave the row out or fill the answer")
    first = next((m["role"] for m in messages if m["role"] != "system"), None)
    if first == "assistant":
        raise TemplateError(
            "the conversation starts with an assistant turn", hint="put the user message before it, or drop the turn"
        )
    return [{key: value for key, value in message.items() if value is not None} for message in messages]


class Renderer:
    """Renders conversations of one tokenizer and template."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self._template = template
        self._used_roles: set[tuple[str, ...]] = set()
        self._control = sorted(tokenizer.control_tokens, key=len, reverse=True)
        # An answer may hold the model's own structure (<think>, <tool_call>): only special tokens become text there.
        self._special = [token for token in self._control if token in tokenizer.special_tokens]
        self._mark_of = {token: chr(_FIRST_MARK + i) for i, token in enumerate(self._control)}
        self._token_of = {mark: token for token, mark in self._mark_of.items()}

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False) -> Rendered:
        """Rendered text of checked messages. Raises TemplateError when injected tokens cannot be told apart."""
        text = self.text(messages, add_generation_prompt=add_generation_prompt)
        marked = [self._marked(message) for message in messages]
        if all(new is old for new, old in zip(marked, messages, strict=True)):
            return Rendered(text)
        return self._unmark(self.text(marked, add_generation_prompt=add_generation_prompt), text)

    def check_used(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Raises TemplateError when the template silently leaves out a message (one render a sequence of roles)."""
        roles = tuple(message["role"] for message in messages)
        if roles in self._used_roles:
            return
        probes = [f"{chr(_FIRST_MARK - 1)}{i}{chr(_FIRST_MARK - 2)}" for i in range(len(messages))]
        probed = [{**message, "content": probe} for message, probe in zip(messages, probes, strict=True)]
        text = self.text(probed, add_generation_prompt=roles[-1] != "assistant")
        for index, (role, probe) in enumerate(zip(roles, probes, strict=True)):
            if probe not in text:
                raise TemplateError(f"message {index}: the template leaves out the {role} message", hint=DROPPED_HINT)
        self._used_roles.add(roles)

    def text(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False) -> str:
        """What the template writes, nothing more."""
        return self._template.render(messages, add_generation_prompt=add_generation_prompt)

    def _marked(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """The message with every control token in its content replaced by its mark; the same object when none is."""
        content = message["content"]
        tokens = self._special if message["role"] == "assistant" else self._control
        found = [token for token in tokens if token in content]
        if not found:
            return message
        for token in found:
            content = content.replace(token, self._mark_of[token])
        return {**message, "content": content}

    def _unmark(self, marked_text: str, text: str) -> Rendered:
        pieces, spans, length = [], [], 0
        for character in marked_text:
            token = self._token_of.get(character)
            if token is not None:
                spans.append((length, length + len(token)))
            pieces.append(token or character)
            length += len(pieces[-1])
        if "".join(pieces) != text:
            raise TemplateError(
                "a message holds a control token of the model, and the template treats it in a special way",
                hint="remove the control token from the row's text",
            )
        return Rendered(text, tuple(spans))

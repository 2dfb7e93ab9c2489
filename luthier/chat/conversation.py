"""From messages to rendered text, knowing which control-token look-alikes came from content and must stay plain text.

A user can type "<|im_end|>". Rendered and tokenised naively it becomes the real token (prompt injection, and a poisoned
loss mask). Here such places are found by differential rendering: each look-alike in a content is replaced by one
private-use character, the template is rendered, and where those characters come out lie the literal spans. The same
is done inside tool calls and tool schemas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.bases.tokenizer import Tokenizer
from luthier.chat.template import ChatTemplate
from luthier.errors import TemplateError

ROLES = ("system", "user", "assistant", "tool")
DROPPED_HINT = "put its text into a user message: the model would never see it here"
NO_TOOLS_HINT = "this model's template knows no tools: choose a base whose template does, or write the calls as text"
_FIRST_MARK = 0xF6000  # private use: one character for each control token


_OURS = ("tools", "train")  # keys of a message that a template does not read there

Shape = tuple[tuple[str, int, int, bool], ...]
"""Of each message: role, number of tool calls, of tools, whether it has content."""


def shape_of(messages: Sequence[Mapping[str, Any]]) -> Shape:
    """What decides which parts of a conversation a template writes."""
    return tuple(
        (m["role"], len(m.get("tool_calls", ())), len(m.get("tools", ())), bool(m["content"].strip())) for m in messages
    )


def _probed(message: Mapping[str, Any], probes: Iterator[str]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """(the message with probes for its texts, [(part, probe)]): what must come out of the template."""
    new, seen = dict(message), []
    if message["content"].strip() or not message.get("tool_calls"):
        new["content"] = next(probes)
        seen.append((f"{message['role']} message", new["content"]))
    if "tool_calls" in message:
        calls = []
        for call in message["tool_calls"]:
            name, argument = next(probes), next(probes)
            calls.append({**call, "function": {"name": name, "arguments": {"argument": argument}}})
            seen += [("tool call", name), ("arguments of the tool call", argument)]
        new["tool_calls"] = calls
    if "tools" in message:
        names = [next(probes) for _ in message["tools"]]
        new["tools"] = [
            {**t, "function": {**t["function"], "name": n}} for t, n in zip(message["tools"], names, strict=True)
        ]
        seen += [("tools", name) for name in names]
    return new, seen


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
        if role == "assistant" and not content.strip() and not message.get("tool_calls"):
            raise TemplateError(f"message {index}: empty assistant answer", hint="leave the row out or fill the answer")
    first = next((m["role"] for m in messages if m["role"] != "system"), None)
    if first == "assistant":
        raise TemplateError(
            "the conversation starts with an assistant turn", hint="put the user message before it, or drop the turn"
        )
    return [{key: value for key, value in message.items() if value is not None} for message in messages]


def trained_turns(messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Indexes of the assistant turns that carry loss."""
    return [i for i, m in enumerate(messages) if m["role"] == "assistant" and m.get("train") is not False]


def strings_of(message: Mapping[str, Any]) -> Iterator[str]:
    """Every text in a message: its content, and all that stands in its tool calls and tool schemas."""
    found: list[str] = []
    rewrite(message, lambda text: found.append(text) or text)
    yield from found


def rewrite(message: Mapping[str, Any], change: Callable[[str], str]) -> Mapping[str, Any]:
    """The message with every text of `strings_of` changed; the same object when nothing is."""
    new = {key: _inside(message[key], change) for key in _TEXTS if key in message}
    return message if all(new[key] == message[key] for key in new) else {**message, **new}


_TEXTS = ("content", "tool_calls", "tools", "name")
_FIXED_KEYS = ("type", "id")  # what a schema's own words are, no text of a user


def _inside(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_inside(item, change) for item in value]
    if isinstance(value, dict):
        return {change(k): item if k in _FIXED_KEYS else _inside(item, change) for k, item in value.items()}
    return value


class Renderer:
    """Renders conversations of one tokenizer and template."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self._template = template
        self._used_shapes: set[Shape] = set()
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
        """Raises TemplateError when the template silently leaves out a message, a tool call or the tools (one render
        a shape of conversation)."""
        shape = shape_of(messages)
        if shape in self._used_shapes:
            return
        probes = iter(f"{chr(_FIRST_MARK - 1)}{i}{chr(_FIRST_MARK - 2)}" for i in range(100_000))
        probed, wanted = [], []
        for index, message in enumerate(messages):
            new, seen = _probed(message, probes)
            probed.append(new)
            wanted += [(index, part, probe) for part, probe in seen]
        text = self.text(probed, add_generation_prompt=messages[-1]["role"] != "assistant")
        for index, part, probe in wanted:
            if probe not in text:
                hint = DROPPED_HINT if part.endswith("message") else NO_TOOLS_HINT
                raise TemplateError(f"message {index}: the template leaves out the {part}", hint=hint)
        self._used_shapes.add(shape)

    def text(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False) -> str:
        """What the template writes, nothing more. Tools are gathered from the messages that carry them."""
        tools: list[Any] = []
        for message in messages:
            tools += [tool for tool in message.get("tools", ()) if tool not in tools]
        plain = [{key: value for key, value in message.items() if key not in _OURS} for message in messages]
        return self._template.render(plain, tools=tools or None, add_generation_prompt=add_generation_prompt)

    def _marked(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """The message with every control token in its texts replaced by its mark; the same object when none is."""
        tokens = self._special if message["role"] == "assistant" else self._control

        def mark(text: str) -> str:
            for token in tokens:
                text = text.replace(token, self._mark_of[token])
            return text

        return rewrite(message, mark)

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

"""Conversations of every dialect as our messages, or the reason why they cannot be.

What: role names of OpenAI, ShareGPT and their kin become system, user, assistant, tool; text parts are joined; the
order of turns is checked. Why here and not in training: most chat templates render a wrong order without complaint,
and it teaches the model to answer itself.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from luthier.types import Message

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant",
    "ai": "assistant", "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool",
    "tool_response": "tool", "ipython": "tool",
}  # fmt: skip


class RowError(ValueError):
    """This one row cannot be used; the text is its reason in the quarantine file."""


def read_turns(turns: Any, role_key: str, text_key: str) -> tuple[Message, ...]:
    """Messages from a list of {role_key: ..., text_key: ...}. Raises RowError."""
    if not isinstance(turns, list) or not turns:
        raise RowError("no turns: expected a list of messages")
    return tuple(_turn(turn, index, role_key, text_key) for index, turn in enumerate(turns, start=1))


def _turn(turn: Any, index: int, role_key: str, text_key: str) -> Message:
    if not isinstance(turn, dict) or role_key not in turn:
        raise RowError(f"turn {index} is not an object with {role_key!r} and {text_key!r}")
    given = turn[role_key]
    role = ROLES.get(given.strip().lower()) if isinstance(given, str) else None
    if role is None:
        raise RowError(f"turn {index} has the unknown role {str(given)[:30]!r}")
    if turn.get("tool_calls") or turn.get("function_call"):
        raise RowError(f"turn {index} calls a tool, which is not supported")
    return {"role": role, "content": _content(turn.get(text_key), index)}


def _content(content: Any, index: int) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content:
        texts = [part.get("text") if isinstance(part, dict) else part for part in content]
        if all(isinstance(text, str) for text in texts):
            return "".join(str(text) for text in texts)
        raise RowError(f"turn {index} has parts that are not text (images, audio, ...)")
    raise RowError(f"turn {index} has no text content ({type(content).__name__})")


def check_order(messages: tuple[Message, ...], needs_answer: bool = True) -> None:
    """Raises RowError unless: at most one system message, first; then user and assistant in turn (a tool result may
    stand between two assistant turns); and the last turn answers, or with needs_answer False is the user's."""
    roles = [message["role"] for message in messages]
    body = roles[1:] if roles[:1] == ["system"] else roles
    if "system" in body:
        raise RowError("a system message stands after the first turn")
    if not body:
        raise RowError("nothing but a system message")
    if body[0] != "user":
        raise RowError(f"the first turn is the {body[0]}'s, expected the user's")
    allowed = {"user": ("assistant",), "assistant": ("user", "tool"), "tool": ("assistant", "tool")}
    for before, after in pairwise(body):
        if after not in allowed[before]:
            words = f"two {after} turns in a row" if before == after else f"{after} turn right after {before} turn"
            raise RowError(words)
    if needs_answer and body[-1] != "assistant":
        raise RowError("no answer: the last turn is not the assistant's")


def with_system(messages: tuple[Message, ...], system: str) -> tuple[Message, ...]:
    """`messages` with `system` in front, unless empty or there is a system message already."""
    if not system or messages[0]["role"] == "system":
        return messages
    return ({"role": "system", "content": system}, *messages)

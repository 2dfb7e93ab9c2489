"""Conversations of every dialect as our messages, or the reason why they cannot be.

What: role names of OpenAI, ShareGPT, ms-swift and their kin become system, user, assistant, tool; text parts are
joined; tool calls are parsed; per-turn weights become `train`; the order of turns is checked. Why here and not in
training: most chat templates render a wrong order without complaint, and it teaches the model to answer itself.
Nothing is left out silently: what cannot be kept (images, reasoning beside the answer, fractional weights) is the row's
reason for quarantine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from luthier.data.strict_json import StrictJson
from luthier.types import Message

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant",
    "ai": "assistant", "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool",
    "tool_response": "tool", "ipython": "tool",
}  # fmt: skip
CALL_ROLES = ("function_call", "tool_call")
"""Roles whose text is a call (or a list of them) as JSON: {"name", "arguments"}."""
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
WEIGHT_KEYS = ("weight", "train", "loss", "training")
_TEXT_PARTS = ("text", "input_text", "output_text", None)
_MARKS = {f"<{kind}>": (kind, f"{kind}s") for kind in ("image", "video", "audio")}


class RowError(ValueError):
    """This one row cannot be used; the text is its reason in the quarantine file."""


def parsed(value: Any) -> Any:
    """`value`, or what it says where it is JSON text of an array or object (tables and CSV files carry them so). Text
    that is doubtful as JSON (a key twice, NaN, half a character) stays text."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return StrictJson().whole(value)
        except ValueError:
            return value
    return value


def read_turns(
    turns: Any, role_key: str = "role", text_key: str = "content", roles: Mapping[str, str] | None = None
) -> tuple[Message, ...]:
    """Messages from a list of {role_key: ..., text_key: ...}; roles: further names of roles. Raises RowError."""
    turns = parsed(turns)
    if not isinstance(turns, list) or not turns:
        raise RowError("no turns: expected a list of messages")
    known = {**ROLES, **(roles or {})}
    messages: list[Message] = []
    for index, turn in enumerate(turns, start=1):
        message, is_call = _turn(turn, index, role_key, text_key, known)
        if is_call and messages and messages[-1]["role"] == "assistant":
            calls = [*messages[-1].get("tool_calls", []), *message.get("tool_calls", [])]
            messages[-1] = {**messages[-1], "tool_calls": calls}
        else:
            messages.append(message)
    return tuple(messages)


def _turn(turn: Any, index: int, role_key: str, text_key: str, roles: Mapping[str, str]) -> tuple[Message, bool]:
    """(message, whether it is nothing but a call, which belongs to an assistant turn right before it)."""
    if not isinstance(turn, dict) or role_key not in turn:
        raise RowError(f"turn {index} is not an object with {role_key!r} and {text_key!r}")
    given = turn[role_key]
    name = given.strip().lower() if isinstance(given, str) else ""
    if name in CALL_ROLES and name not in roles:
        calls = read_calls(parsed(turn.get(text_key)), index)
        return {"role": "assistant", "content": "", "tool_calls": calls}, True
    role = roles.get(given) or roles.get(name) if isinstance(given, str) else None
    if role is None:
        raise RowError(f"turn {index} has the unknown role {str(given)[:30]!r}")
    lost = next((key for key in REASONING_KEYS if turn.get(key)), None)
    if lost:
        raise RowError(f"turn {index} has {lost!r}, which no message of ours can hold")
    legacy = [turn["function_call"]] if turn.get("function_call") else None
    given_calls = parsed(turn.get("tool_calls")) or legacy
    calls = read_calls(given_calls, index) if given_calls else []
    content = "" if calls and turn.get(text_key) is None else _content(turn.get(text_key), index)
    message: Message = {"role": role, "content": content}
    if calls:
        if role != "assistant":
            raise RowError(f"turn {index}: a {role} turn calls a tool")
        message["tool_calls"] = calls
    if turn.get("tool_call_id"):
        message["tool_call_id"] = str(turn["tool_call_id"])
    if role == "tool" and isinstance(turn.get("name"), str) and turn["name"]:
        message["name"] = turn["name"]
    if role == "assistant" and not _is_trained(turn, index):
        message["train"] = False
    return message, False


def _is_trained(turn: dict[str, Any], index: int) -> bool:
    weights = {key: turn[key] for key in WEIGHT_KEYS if turn.get(key) is not None}
    for key, weight in weights.items():
        if weight not in (0, 1):
            raise RowError(f"turn {index} has {key} {weight!r}: a turn is trained (1) or not (0)")
    return all(weights.values())


def _content(content: Any, index: int) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content:
        texts = [_part_text(part) if isinstance(part, dict) else part for part in content]
        weighted = [part for part in content if isinstance(part, dict) and any(part.get(k) == 0 for k in WEIGHT_KEYS)]
        if weighted:
            raise RowError(f"turn {index} has a part that is not trained; mark whole turns, or use segments")
        if all(isinstance(text, str) for text in texts):
            return "".join(str(text) for text in texts)
        raise RowError(f"turn {index} has parts that are not text (images, audio, ...)")
    raise RowError(f"turn {index} has no text content ({type(content).__name__})")


def _part_text(part: dict[str, Any]) -> Any:
    """The text of a content part; None for one that is something else, whatever text it has beside (a caption, a
    thought)."""
    return part.get("text") if part.get("type") in _TEXT_PARTS else None


def check_no_media(messages: Sequence[Message], row: Mapping[str, Any]) -> None:
    """Raises RowError where a turn has the mark of a picture, film or sound that stands in a column of the row."""
    for mark, columns in _MARKS.items():
        if any(column in row for column in columns) and any(mark in message["content"] for message in messages):
            raise RowError(f"a turn has the mark {mark}, and what it stands for cannot be kept")


def read_calls(calls: Any, index: int) -> list[dict[str, Any]]:
    """Tool calls of OpenAI's and plainer shapes, arguments parsed. Raises RowError."""
    found = []
    for call in calls if isinstance(calls, list) else [calls]:
        inner = parsed(call.get("function")) if isinstance(call, dict) and call.get("function") else call
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str) or not inner["name"]:
            raise RowError(f"turn {index}: a tool call without a name")
        arguments = inner.get("arguments", inner.get("parameters"))
        arguments = {} if arguments in (None, "") else parsed(arguments)
        if not isinstance(arguments, dict):
            raise RowError(f"turn {index}: the arguments of {inner['name'][:30]!r} are not a JSON object")
        one: dict[str, Any] = {"type": "function", "function": {"name": inner["name"], "arguments": arguments}}
        if isinstance(call, dict) and call.get("id"):
            one["id"] = str(call["id"])
        found.append(one)
    if not found:
        raise RowError(f"turn {index}: an empty list of tool calls")
    return found


def read_tools(tools: Any) -> list[dict[str, Any]]:
    """Function schemas of OpenAI's, Anthropic's (input_schema) or bare shape, as OpenAI's. Raises RowError."""
    tools = parsed(tools)
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowError("tools is not a list of function schemas")
    found = []
    for tool in tools:
        inner = tool.get("function") if isinstance(tool.get("function"), dict) else tool
        if not isinstance(inner.get("name"), str) or not inner["name"]:
            raise RowError("a tool without a name")
        fields = {key: value for key, value in inner.items() if key != "type" and value is not None}
        if "input_schema" in fields:
            fields["parameters"] = fields.pop("input_schema")
        found.append({"type": "function", "function": fields})
    return found


def with_tools(messages: tuple[Message, ...], tools: Any) -> tuple[Message, ...]:
    """`messages` with the function schemas on the first user turn; unchanged where there are none."""
    if tools in (None, "", []) or parsed(tools) == []:
        return messages
    schemas = read_tools(tools)
    first = next((index for index, message in enumerate(messages) if message["role"] == "user"), None)
    if first is None:
        raise RowError("tools, but no user turn")
    holder: Message = {**messages[first], "tools": schemas}
    return (*messages[:first], holder, *messages[first + 1 :])


def check_order(messages: Sequence[Message], needs_answer: bool = True) -> None:
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
    if needs_answer and all(message.get("train") is False for message in messages if message["role"] == "assistant"):
        raise RowError("no turn of this row is trained (weight 0)")
    _check_calls(messages)


def _check_calls(messages: Sequence[Message]) -> None:
    """Every result with an id answers a call of the turn before it, and it is clear which call each result answers."""
    open_ids: list[str] = []
    answered: set[str] = set()
    num_calls = 0
    for message in messages:
        if message["role"] == "assistant":
            calls = message.get("tool_calls", [])
            open_ids, num_calls, answered = [call["id"] for call in calls if "id" in call], len(calls), set()
            if len(set(open_ids)) != len(open_ids):
                raise RowError("two tool calls of one turn have the same id")
        elif message["role"] == "tool":
            given = message.get("tool_call_id")
            if given and given not in open_ids and (open_ids or not num_calls):
                raise RowError(f"a tool result answers the call {given[:30]!r}, which nobody made")
            if given in answered:
                raise RowError(f"two tool results answer the call {given[:30]!r}")
            answered |= {given} if given else set()
            if not given and num_calls > 1 and open_ids:
                raise RowError("a tool result without a call id, after several calls")


def with_system(messages: tuple[Message, ...], system: str) -> tuple[Message, ...]:
    """`messages` with `system` in front, unless empty or there is a system message already."""
    if not system or messages[0]["role"] == "system":
        return messages
    return ({"role": "system", "content": system}, *messages)

"""Conversations with tools: OpenAI messages, ShareGPT, Anthropic blocks.

Sources: OpenAI's chat completions reference; ShareGPT as Axolotl, LLaMA-Factory and ms-swift write it (function_call
and observation turns, {human, assistant} pairs); Anthropic's messages reference (tool_use and tool_result blocks).
"""

from __future__ import annotations

from typing import Any

from luthier.data.formats.format import (
    CHAT,
    SYSTEM_KEYS,
    TOOLS,
    Content,
    Format,
    Keys,
    Mapping,
    found,
    json_text,
    openai_turns,
    pair,
    tools_column,
    turns_of,
)
from luthier.data.templates import as_text
from luthier.data.turns import RowError, check_no_media, parsed, read_turns, with_system, with_tools
from luthier.types import Message

_PARTS = {"turns": "messages", "system": "system", "tools": "tools", "role": "", "content": ""}
_EVERY_TURN = frozenset({"earlier answers trained", "earlier answers untrained", "last answer untrained"})


def with_columns(messages: tuple[Message, ...], row: dict[str, Any], mapping: Mapping) -> tuple[Message, ...]:
    """`messages` with the system message and the tools that stand in columns of their own. Raises RowError."""
    check_no_media(messages, row)
    messages = with_system(messages, as_text(row.get(mapping.keys.get("system", ""))))
    return with_tools(messages, row.get(mapping.keys.get("tools", "")))


def _columns(keys: Keys, turns: str) -> dict[str, str]:
    return found(turns=turns, system=keys.first(SYSTEM_KEYS), tools=keys.first(("tools", "functions")))


def _recognise_messages(keys: Keys, needs_answer: bool) -> dict[str, str] | None:
    if isinstance(keys.value("messages"), list):
        return _columns(keys, keys.first(("messages",)))
    turns = keys.turns()
    return _columns(keys, turns) if turns and "role" in keys.value(turns.lower())[0] else None


def _read_messages(row: dict[str, Any], mapping: Mapping, needs_answer: bool) -> Content:
    return Content(with_columns(turns_of(row.get(mapping.keys["turns"]), mapping), row, mapping))


def _write_messages(content: Content) -> dict[str, Any]:
    return {"messages": openai_turns(content.messages), **tools_column(content.messages)}


MESSAGES = Format(
    "messages",
    "OpenAI messages: roles, text parts, tools and tool calls, weight 0 for turns that are not trained",
    _PARTS,
    _recognise_messages,
    _read_messages,
    CHAT | TOOLS | _EVERY_TURN,
    _write_messages,
)


def _recognise_sharegpt(keys: Keys, needs_answer: bool) -> dict[str, str] | None:
    turns = keys.turns(("conversations", "conversation"))
    if not turns:
        return None
    first = keys.value(turns.lower())[0]
    return _columns(keys, turns) if "from" in first or {"human", "assistant"} <= set(first) else None


def _read_sharegpt(row: dict[str, Any], mapping: Mapping, needs_answer: bool) -> Content:
    turns = parsed(row.get(mapping.keys["turns"]))
    if isinstance(turns, list) and turns and isinstance(turns[0], dict) and {"human", "assistant"} <= set(turns[0]):
        messages = tuple(message for turn in turns for message in _swift_pair(turn))
    else:
        role, text = mapping.keys.get("role", "from"), mapping.keys.get("content", "value")
        messages = read_turns(turns, role, text, mapping.roles)
    return Content(with_columns(messages, row, mapping))


def _swift_pair(turn: Any) -> tuple[Message, ...]:
    if not isinstance(turn, dict) or not all(isinstance(turn.get(key), str) for key in ("human", "assistant")):
        raise RowError("a turn is not an object with 'human' and 'assistant'")
    return pair(turn["human"], turn["assistant"])


_SHAREGPT_NAMES = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


def _write_sharegpt(content: Content) -> dict[str, Any]:
    turns: list[dict[str, Any]] = []
    for message in content.messages:
        calls = [call["function"] for call in message.get("tool_calls", [])]
        if message["content"] or not calls:
            turns.append({"from": _SHAREGPT_NAMES[message["role"]], "value": message["content"]})
        turns += [{"from": "function_call", "value": json_text(call)} for call in calls]
    return {"conversations": turns, **tools_column(content.messages)}


SHAREGPT = Format(
    "sharegpt",
    "ShareGPT: from and value; function_call and observation turns; {human, assistant} pairs of ms-swift",
    {**_PARTS, "turns": "conversations"},
    _recognise_sharegpt,
    _read_sharegpt,
    CHAT | {"tool schemas", "tool calls", "tool results", "calls without ids", "earlier answers trained"},
    _write_sharegpt,
)


def _recognise_anthropic(keys: Keys, needs_answer: bool) -> dict[str, str] | None:
    turns = keys.value("messages")
    if not isinstance(turns, list):
        return None
    contents = [turn.get("content") for turn in turns if isinstance(turn, dict)]
    blocks = [block for content in contents if isinstance(content, list) for block in content]
    kinds = {block.get("type") for block in blocks if isinstance(block, dict)}
    tools = keys.value("tools")
    has_schema = isinstance(tools, list) and any(isinstance(tool, dict) and "input_schema" in tool for tool in tools)
    if kinds & {"tool_use", "tool_result"} or has_schema:
        return _columns(keys, keys.first(("messages",)))
    return None


def _read_anthropic(row: dict[str, Any], mapping: Mapping, needs_answer: bool) -> Content:
    turns = parsed(row.get(mapping.keys["turns"]))
    if not isinstance(turns, list) or not turns:
        raise RowError("no turns: expected a list of messages")
    flat = [one for index, turn in enumerate(turns, start=1) for one in _plain_turns(turn, index)]
    row = {**row, mapping.keys.get("system", ""): _joined(row.get(mapping.keys.get("system", "")))}
    return Content(with_columns(read_turns(flat), row, mapping))


def _joined(system: Any) -> Any:
    """A system prompt given as text blocks, as one text."""
    blocks = parsed(system)
    if isinstance(blocks, list) and all(isinstance(block, dict) and "text" in block for block in blocks):
        return "".join(block["text"] for block in blocks)
    return system


def _plain_turns(turn: Any, index: int) -> list[dict[str, Any]]:
    """One Anthropic turn as turns of OpenAI's shape: results first, then the text with its calls."""
    if not isinstance(turn, dict) or not isinstance(turn.get("content"), list):
        return [turn]
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for block in turn["content"]:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text" and not calls:
            texts.append(str(block.get("text") or ""))
        elif kind == "tool_use":
            calls.append(
                {"id": block.get("id"), "function": {"name": block.get("name"), "arguments": block.get("input")}}
            )
        elif kind == "tool_result" and not texts:
            results.append(
                {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": block.get("content") or ""}
            )
        else:
            raise RowError(f"turn {index} has a {kind} block, or blocks in an order, that cannot be kept")
    rest = {key: value for key, value in turn.items() if key != "content"}
    if texts or calls or not results:
        text = "".join(texts)
        return [*results, {**rest, "content": text, **({"tool_calls": calls} if calls else {})}]
    return results


def _write_anthropic(content: Content) -> dict[str, Any]:
    system = next((m["content"] for m in content.messages if m["role"] == "system"), None)
    turns: list[dict[str, Any]] = []
    for message in content.messages:
        text = [{"type": "text", "text": message["content"]}] if message["content"] else []
        if message["role"] == "tool":
            result = {
                "type": "tool_result", "tool_use_id": message.get("tool_call_id"), "content": message["content"]
            }  # fmt: skip
            if turns and turns[-1]["role"] == "user" and turns[-1]["content"][0]["type"] == "tool_result":
                turns[-1]["content"].append(result)
            else:
                turns.append({"role": "user", "content": [result]})
        elif message["role"] != "system":
            calls = [
                {
                    "type": "tool_use",
                    "id": c.get("id"),
                    "name": c["function"]["name"],
                    "input": c["function"]["arguments"],
                }
                for c in message.get("tool_calls", [])
            ]
            turns.append({"role": message["role"], "content": text + calls})
    row: dict[str, Any] = {} if system is None else {"system": system}
    tools = tools_column(content.messages).get("tools", [])
    schemas = [_anthropic_schema(tool["function"]) for tool in tools]
    return {**row, "messages": turns, **({"tools": schemas} if schemas else {})}


def _anthropic_schema(function: dict[str, Any]) -> dict[str, Any]:
    fields = dict(function)
    return {**{k: v for k, v in fields.items() if k != "parameters"}, "input_schema": fields.get("parameters") or {}}


ANTHROPIC = Format(
    "anthropic",
    "Anthropic messages: text, tool_use and tool_result blocks, a system column, input_schema",
    {"turns": "messages", "system": "system", "tools": "tools"},
    _recognise_anthropic,
    _read_anthropic,
    CHAT | {"tool schemas", "tool calls", "tool results", "call ids", "earlier answers trained"},
    _write_anthropic,
)

"""Rows of one prompt and one answer: Alpaca, prompt and completion, text with a label, and the named column sets of
Axolotl's instruction types.

Sources: the dataset pages of TRL, Axolotl, LLaMA-Factory and ms-swift; for the named ones Axolotl's prompt strategies
(their fields; the texts around them are ours or the chat template's).
"""

from __future__ import annotations

from typing import Any

from luthier.data.formats.conversations import with_columns
from luthier.data.formats.format import (
    ANSWER_KEYS,
    CHAT,
    PROMPT_KEYS,
    SYSTEM_KEYS,
    TOOLS,
    Content,
    Format,
    Keys,
    Mapping,
    cell_text,
    context,
    found,
    openai_turns,
    pair,
    tools_column,
    turn_list,
    turns_of,
    untold,
)
from luthier.data.templates import Template, as_text, parse_template
from luthier.data.turns import RowError, parsed
from luthier.types import Message

TEXT_KEYS = ("text", "content", "document", "body")
LABEL_KEYS = ("label", "category", "class", "intent", "topic")


def _history(row: dict[str, Any], keys: dict[str, str]) -> tuple[Message, ...]:
    turns: tuple[Message, ...] = ()
    for turn in parsed(row.get(keys.get("history", ""))) or []:
        if not isinstance(turn, list) or len(turn) != 2:
            raise RowError("history is not a list of [question, answer]")
        turns = (*turns, *pair(as_text(turn[0]), as_text(turn[1])))
    return turns


def _extras(keys: Keys) -> dict[str, str]:
    return found(system=keys.first(SYSTEM_KEYS), history=keys.first(("history",)), tools=keys.first(("tools",)))


def _recognise_alpaca(keys: Keys, needs_answer: bool) -> dict[str, str] | None:
    answer = keys.first(ANSWER_KEYS)
    if not keys.has("instruction") or not (answer or not needs_answer):
        return None
    names = found(instruction=keys.first(("instruction",)), input=keys.first(("input",)), output=answer)
    return names | _extras(keys)


def _read_alpaca(row: dict[str, Any], mapping: Mapping, needs_answer: bool) -> Content:
    keys = mapping.keys
    extra = as_text(row.get(keys.get("input", "")))
    instruction = cell_text(row, keys["instruction"])
    prompt = f"{instruction}\n\n{extra}" if extra.strip() else instruction
    turns = _history(row, keys) + pair(prompt, cell_text(row, keys["output"]) if needs_answer else None)
    return Content(with_columns(turns, row, mapping))


def _write_alpaca(content: Content) -> dict[str, Any]:
    has_system = content.messages[0]["role"] == "system"
    turns = [message["content"] for message in content.messages[has_system:]]
    row: dict[str, Any] = {"instruction": turns[-2], "input": "", "output": turns[-1]}
    if has_system:
        row["system"] = content.messages[0]["content"]
    history = [[turns[i], turns[i + 1]] for i in range(0, len(turns) - 2, 2)]
    return row | ({"history": history} if history else {}) | tools_column(content.messages)


ALPACA = Format(
    "alpaca",
    "Alpaca: instruction, input, output (or response), system, history of [question, answer]",
    {"instruction": "instruction", "input": "input", "output": "output", "system": "system", "history": "history",
     "tools": "tools"},
    _recognise_alpaca,
    _read_alpaca,
    CHAT | {"earlier answers trained", "tool schemas"},
    _write_alpaca,
)  # fmt: skip


def _recognise_prompt_completion(keys: Keys, needs_answer: bool) -> dict[str, str] | None:
    answer = keys.first(ANSWER_KEYS)
    prompt = keys.first(PROMPT_KEYS, but=answer)
    return found(prompt=prompt, completion=answer) | _extras(keys) if prompt and (answer or not needs_answer) else None


def read_prompt(row: dict[str, Any], mapping: Mapping) -> tuple[Message, ...]:
    """The turns before the answer, from a text or a list of turns; answers among them are context."""
    turns = turn_list(row.get(mapping.keys["prompt"]))
    if turns is not None:
        return context(turns_of(turns, mapping))
    prompt, extra = cell_text(row, mapping.keys["prompt"]), as_text(row.get(mapping.keys.get("input", "")))
    return pair(f"{prompt}\n\n{extra}" if extra.strip() else prompt, None)


def read_answer(value: Any, mapping: Mapping, name: str) -> tuple[Message, ...]:
    """The turns of an answer, from a text, one turn or a list of turns. Raises RowError."""
    turns = turn_list(value)
    if turns is not None:
        return turns_of(turns, mapping)
    return ({"role": "assistant", "content": cell_text({name: value}, name)},)


def _read_prompt_completion(row: dict[str, Any], mapping: Mapping, needs_answer: bool) -> Content:
    turns = _history(row, mapping.keys) + read_prompt(row, mapping)
    if needs_answer:
        name = mapping.keys["completion"]
        turns += read_answer(row.get(name), mapping, name)
    return Content(with_columns(turns, row, mapping))


def write_prompt_completion(content: Content) -> dict[str, Any]:
    """prompt and completion, as text where that says all, else as lists of turns."""
    first = len(content.messages) - 1
    prompt, answer = content.messages[:first], content.messages[first:]
    tools = tools_column(content.messages)
    texts = [prompt[0]["content"], answer[0]["content"]]
    is_plain = len(prompt) == 1 and "tool_calls" not in answer[0] and not any(map(turn_list, texts))
    if is_plain:
        return {"prompt": texts[0], "completion": texts[1], **tools}
    return {"prompt": untold(prompt), "completion": openai_turns(answer), **tools}


PROMPT_COMPLETION = Format(
    "prompt_completion",
    "Prompt and completion (or question/answer, query/response, input/output, ...), as text or lists of turns",
    {"prompt": "prompt", "completion": "completion", "system": "system", "history": "history", "tools": "tools",
     "role": "", "content": ""},
    _recognise_prompt_completion,
    _read_prompt_completion,
    CHAT | TOOLS | {"earlier answers untrained"},
    write_prompt_completion,
)  # fmt: skip


def _recognise_columns(keys: Keys, needs_answer: bool) -> dict[str, str] | None:
    text, label = keys.first(TEXT_KEYS), keys.first(LABEL_KEYS)
    return {"prompt": text, "completion": label} if text and label and needs_answer else None


def _read_columns(row: dict[str, Any], mapping: Mapping, needs_answer: bool) -> Content:
    answer = cell_text(row, mapping.keys["completion"]) if needs_answer else None
    return Content(pair(cell_text(row, mapping.keys["prompt"]), answer))


COLUMNS = Format(
    "columns",
    "Text and label, or any columns by the templates data.prompt and data.completion (or data.json_fields)",
    {},
    _recognise_columns,
    _read_columns,
)


def _named(
    name: str, about: str, needs: tuple[str, ...], prompt: str, completion: str, *, by_name_only: bool = False
) -> Format:
    """A set of columns that belongs together, with a template for each side. needs: columns that tell it from others
    though no template reads them. Of the templates' columns only `input` may be missing."""
    sides: tuple[Template, Template] = parse_template(prompt), parse_template(completion)
    columns = tuple(dict.fromkeys((*needs, *sides[0].fields, *sides[1].fields)))
    must = tuple(column for column in columns if column != "input")

    def recognise(keys: Keys, needs_answer: bool) -> dict[str, str] | None:
        return found(**{column: keys.first((column,)) for column in columns}) if keys.has(*must) else None

    def read(row: dict[str, Any], mapping: Mapping, needs_answer: bool) -> Content:
        cells = {column: _listed(row.get(mapping.keys.get(column, ""))) for column in columns}
        empty = next((column for column in sides[1].fields if not as_text(cells[column]).strip()), None)
        if needs_answer and empty:
            raise RowError(f"empty answer: column {empty!r} is empty")
        return Content(pair(sides[0].fill(cells).rstrip("\n"), sides[1].fill(cells) if needs_answer else None))

    parts = {column: column for column in columns}
    return Format(name, about, parts, recognise, read, by_name_only=by_name_only)


def _listed(cell: Any) -> Any:
    """A list of choices as lines."""
    cell = parsed(cell)
    return "\n".join(f"- {as_text(choice)}" for choice in cell) if isinstance(cell, list) else cell


NAMED = (
    _named("explainchoice", "A question with choices, answered by the explanation", ("solution",),
           "{question}\n\n{choices}", "{explanation}"),
    _named("concisechoice", "A question with choices, answered by the solution", (),
           "{question}\n\n{choices}", "{solution}"),
    _named("summarizetldr", "An article and its summary", (), "{article}", "{summary}"),
    _named("camel_ai", "Two messages of CAMEL-AI", (), "{message_1}", "{message_2}"),
    _named("metharme", "A prompt and its generation", (), "{prompt}", "{generation}"),
    _named("reflection", "An answer, a reflection on it and the corrected answer", (),
           "{instruction}\n\n{input}", "{output}\n\n{reflection}\n\n{corrected}"),
    _named("context_qa", "A question on an article", (), "{article}\n\n{question}", "{answer}"),
    _named("context_qa.load_v2", "A question on a context", (), "{context}\n\n{question}", "{answer}"),
    _named("creative_acr", "An instruction and the revised answer", ("critique",), "{instruction}", "{revision}"),
    _named("jeopardy", "A question of a category", (), "{category}: {question}", "{answer}", by_name_only=True),
)  # fmt: skip
"""Column sets of Axolotl's instruction types. The first that fits is taken, so the richer stand first."""

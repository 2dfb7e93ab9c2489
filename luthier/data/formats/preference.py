"""Rows that compare or judge answers: preference pairs, KTO labels, step-wise labels.

A preference pair has a prompt and two sides. The prompt may be a column, a list of turns, or implicit: the longest
common beginning of both sides. Sides are texts, one turn, or lists of turns; transcripts with "Human:" and
"Assistant:" are taken apart. In `Content`, messages = prompt + chosen side, rejected = the turns after the same prompt;
both sides begin where the first trained answer stands.
Sources: the dataset pages of TRL (dataset formats, extract_prompt), LLaMA-Factory (kto_tag), ms-swift
(rejected_response, rejected_messages), Axolotl (DPO and KTO types), Anthropic's hh-rlhf.
"""

from __future__ import annotations

import re
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
from luthier.data.formats.pairs import read_answer, read_prompt, write_prompt_completion
from luthier.data.turns import RowError, check_order, parsed
from luthier.types import Message

CHOSEN_KEYS = ("chosen", "chosen_response")
REJECTED_KEYS = ("rejected", "rejected_response", "rejected_messages")
TAG_KEYS = ("kto_tag", "desirable", "label")
_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")
_ASKED = {"prompt": "prompt", "input": "input", "system": "system", "tools": "tools", "role": "", "content": ""}
SAME_SIDES = "chosen and rejected are the same"
_TRUE, _FALSE = ("true", "desirable"), ("false", "undesirable")


def asked(keys: Keys) -> dict[str, str]:
    """The columns of the prompt: instruction and its input, or one of the usual names."""
    if keys.has("instruction"):
        return found(prompt=keys.first(("instruction",)), input=keys.first(("input",)))
    return found(prompt=keys.first(PROMPT_KEYS))


def _recognise_pairs(keys: Keys, needs_answer: bool) -> dict[str, str] | None:
    rejected = keys.first(REJECTED_KEYS)
    chosen, turns = keys.first(CHOSEN_KEYS), keys.turns()
    if not rejected or not (chosen or turns) or not needs_answer:
        return None
    prompt = asked(keys) if chosen else {}
    columns = (prompt or found(turns=turns)) | found(chosen=chosen, rejected=rejected)
    return columns | found(system=keys.first(SYSTEM_KEYS), tools=keys.first(("tools",)))


def _read_pairs(row: dict[str, Any], mapping: Mapping, needs_answer: bool) -> Content:
    keys = mapping.keys
    prompt: tuple[Message, ...] = ()
    if row.get(keys.get("turns", "")):
        prompt = context(turns_of(row.get(keys["turns"]), mapping))
        if "chosen" not in keys:  # ms-swift: the conversation holds the chosen answer
            prompt, chosen = prompt[:-1], (_trained(prompt[-1]),)
            return compared(row, mapping, prompt, chosen, _side(row, mapping, "rejected"))
    elif row.get(keys.get("prompt", "")):
        prompt = read_prompt(row, mapping)
    return compared(row, mapping, prompt, _side(row, mapping, "chosen"), _side(row, mapping, "rejected"))


def _trained(message: Message) -> Message:
    bare: Message = {"role": message["role"], "content": message["content"]}
    return {**bare, "tool_calls": message["tool_calls"]} if "tool_calls" in message else bare


def _side(row: dict[str, Any], mapping: Mapping, part: str) -> tuple[Message, ...]:
    name = mapping.keys[part]
    value = row.get(name)
    if isinstance(value, str) and not value.strip():
        raise RowError(f"empty {part} side")
    if isinstance(value, str) and _SPEAKER.match(value.lstrip("\n")):
        return _transcript(value.lstrip("\n"))
    return read_answer(value, mapping, name)


def _transcript(text: str) -> tuple[Message, ...]:
    """Turns of "Human: ...\\n\\nAssistant: ..."."""
    pieces = _SPEAKER.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(pieces[1::2], pieces[2::2], strict=True)
    return tuple({"role": roles[speaker], "content": said.strip()} for speaker, said in pairs)


def compared(
    row: dict[str, Any],
    mapping: Mapping,
    prompt: tuple[Message, ...],
    chosen: tuple[Message, ...],
    rejected: tuple[Message, ...],
) -> Content:
    """The content of a prompt and two sides, each of which may repeat the prompt."""
    if chosen == rejected:
        raise RowError(SAME_SIDES)
    if not prompt:
        num_same = 0
        shortest = min(len(chosen), len(rejected)) - 1
        while num_same < shortest and chosen[num_same] == rejected[num_same]:
            num_same += 1
        prompt, chosen, rejected = chosen[:num_same], chosen[num_same:], rejected[num_same:]
        if not prompt:
            raise RowError("no prompt: neither a column nor a common beginning of chosen and rejected")
    else:
        chosen, rejected = _without(chosen, prompt, "chosen"), _without(rejected, prompt, "rejected")
    whole = with_columns(context(prompt), row, mapping)
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if not side or not any(message["content"].strip() or "tool_calls" in message for message in side):
            raise RowError(f"empty {name} side")
        check_order((*whole, *side))
    return Content((*whole, *chosen), rejected=rejected)


def _without(side: tuple[Message, ...], prompt: tuple[Message, ...], name: str) -> tuple[Message, ...]:
    """The side without the prompt that it may repeat."""
    if side[0]["role"] == "assistant":
        return side
    wanted = [(m["role"], m["content"]) for m in prompt]
    if [(m["role"], m["content"]) for m in side[: len(prompt)]] != wanted:
        raise RowError(f"the conversation of {name} does not begin with the prompt")
    return side[len(prompt) :]


def start_of_sides(messages: tuple[Message, ...]) -> int:
    """Index of the first trained answer: where both sides begin."""
    answers = (i for i, m in enumerate(messages) if m["role"] == "assistant" and m.get("train") is not False)
    return next(answers, len(messages) - 1)


def _write_pairs(content: Content) -> dict[str, Any]:
    start = start_of_sides(content.messages)
    prompt, chosen, rejected = content.messages[:start], content.messages[start:], content.rejected
    tools = tools_column(prompt)
    sides = (prompt, chosen, rejected)
    texts = [turns[0]["content"] for turns in sides]
    if all(len(turns) == 1 and "tool_calls" not in turns[0] for turns in sides) and _are_plain(texts):
        return dict(zip(("prompt", "chosen", "rejected"), texts, strict=True)) | tools
    return {
        "prompt": untold(prompt), "chosen": openai_turns(chosen), "rejected": openai_turns(rejected), **tools
    }  # fmt: skip


def _are_plain(texts: list[str]) -> bool:
    """Would these texts be read back as the very texts?"""
    return all(turn_list(text) is None and text.strip() and not _SPEAKER.match(text.lstrip("\n")) for text in texts)


PREFERENCE = Format(
    "preference",
    "Preference pairs: chosen and rejected (texts, a turn, lists of turns), with a prompt column or a common beginning",
    {**_ASKED, "turns": "messages", "chosen": "chosen", "rejected": "rejected"},
    _recognise_pairs,
    _read_pairs,
    CHAT | TOOLS | {"rejected side", "earlier answers untrained", "earlier answers trained"},
    _write_pairs,
    preference=True,
    needs="rejected side",
)


def _recognise_kto(keys: Keys, needs_answer: bool) -> dict[str, str] | None:
    label = keys.first(TAG_KEYS)
    turns, prompt = keys.turns(), asked(keys)
    completion = keys.first(ANSWER_KEYS)
    if not label or not needs_answer or not (turns or (prompt and completion not in ("", prompt["prompt"]))):
        return None
    if label.lower() == "label" and not keys.is_forced and _flag(keys.value("label")) is None:
        return None  # a class, not a judgement
    columns = found(turns=turns) or {**prompt, "completion": completion}
    return columns | found(label=label, system=keys.first(SYSTEM_KEYS), tools=keys.first(("tools",)))


def _flag(value: Any, *, numbers: bool = False) -> bool | None:
    """True or False in the spellings of files; numbers: 0 and 1 too (they may be classes)."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in (*_TRUE, *_FALSE):
        return value.strip().lower() in _TRUE
    return bool(float(value)) if numbers and str(value).strip() in ("0", "1", "0.0", "1.0") else None


def _read_kto(row: dict[str, Any], mapping: Mapping, needs_answer: bool) -> Content:
    keys = mapping.keys
    label = _flag(row.get(keys["label"]), numbers=True)
    if label is None:
        raise RowError(f"column {keys['label']!r} is neither true nor false")
    if row.get(keys.get("turns", "")):
        messages = turns_of(row.get(keys["turns"]), mapping)
    else:
        messages = read_prompt(row, mapping) + read_answer(row.get(keys["completion"]), mapping, keys["completion"])
    return Content(with_columns(messages, row, mapping), label=label)


def _write_kto(content: Content) -> dict[str, Any]:
    earlier = [m for m in content.messages[:-1] if m["role"] == "assistant"]
    if any(m.get("train") is not False for m in earlier):
        return {"messages": openai_turns(content.messages), "label": content.label, **tools_column(content.messages)}
    return write_prompt_completion(content) | {"label": content.label}


KTO = Format(
    "kto",
    "Judged answers (KTO): prompt and completion, or turns, with label, kto_tag or desirable",
    {**_ASKED, "completion": "completion", "turns": "messages", "label": "label"},
    _recognise_kto,
    _read_kto,
    CHAT | TOOLS | {"label", "earlier answers untrained", "earlier answers trained"},
    _write_kto,
    preference=True,
    needs="label",
)


def _recognise_steps(keys: Keys, needs_answer: bool) -> dict[str, str] | None:
    if not keys.has("completions", "labels") or not isinstance(keys.value("completions"), list) or not needs_answer:
        return None
    prompt = keys.first(PROMPT_KEYS)
    return found(prompt=prompt, steps=keys.first(("completions",)), labels=keys.first(("labels",))) if prompt else None


def _read_steps(row: dict[str, Any], mapping: Mapping, needs_answer: bool) -> Content:
    texts, labels = parsed(row.get(mapping.keys["steps"])), parsed(row.get(mapping.keys["labels"]))
    if not isinstance(texts, list) or not isinstance(labels, list) or len(texts) != len(labels) or not texts:
        raise RowError("completions and labels are not two lists of the same length")
    flags = [_flag(label, numbers=True) for label in labels]
    if not all(isinstance(text, str) for text in texts) or None in flags:
        raise RowError("a step is not text, or its label neither true nor false")
    steps = tuple((text, bool(flag)) for text, flag in zip(texts, flags, strict=True))
    return Content(pair(cell_text(row, mapping.keys["prompt"]), "\n".join(texts)), steps=steps)


def _write_steps(content: Content) -> dict[str, Any]:
    texts, labels = [text for text, _ in content.steps], [flag for _, flag in content.steps]
    return {"prompt": content.messages[0]["content"], "completions": texts, "labels": labels}


STEPWISE = Format(
    "stepwise",
    "Step-wise labels: prompt, completions (the steps of one answer), labels",
    {"prompt": "prompt", "steps": "completions", "labels": "labels"},
    _recognise_steps,
    _read_steps,
    frozenset({"prompt and answer", "steps"}),
    _write_steps,
    preference=True,
    needs="steps",
)

"""The `datasets` of an Axolotl file as settings of our section `data`.

Source: Axolotl's dataset formats and its prompt strategies (types, field names, defaults).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from luthier.config.loss import SEQUENCES

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TYPES = {
    "alpaca": "alpaca", "alpaca_chat": "alpaca", "alpaca_instruct": "alpaca", "alpaca_w_system": "alpaca",
    "alpaca_chat.load_concise": "alpaca", "alpaca_chat.load_no_prompt": "alpaca", "gpteacher": "alpaca",
    "oasst": "alpaca", "alpaca_w_system.load_chat": "alpaca", "alpaca_w_system.load_instruct": "alpaca",
    "alpaca_chat.load_qa": "prompt_completion", "alpaca_w_system.load_open_orca": "prompt_completion",
    "alpaca_w_system.load_open_orca_chatml": "prompt_completion", "gpt4all": "prompt_completion",
    "alpaca_chat.load_camel_ai": "camel_ai", "jeopardy": "jeopardy", "explainchoice": "explainchoice",
    "concisechoice": "concisechoice", "summarizetldr": "summarizetldr", "reflection": "reflection",
    "metharme": "metharme", "context_qa": "context_qa", "context_qa.load_v2": "context_qa.load_v2",
    "creative_acr": "creative_acr", "creative_acr.load_answer": "creative_acr",
    "completion": "text", "pretrain": "text", "input_output": "segments", "sharegpt": "sharegpt",
    "chat_template": "messages", "chat_template.default": "messages", "messages.chat": "messages",
    "stepwise_supervised": "stepwise", "bradley_terry.chat_template": "preference", "zephyr.nectar": "ranked",
}  # fmt: skip
_PREFERENCE = re.compile(
    r"(?:chatml|llama3)\.(?:default|argilla\w*|icr|intel|prompt_pairs|ultra)|chat_template\.argilla\w*"
)
_TELLS = {  # part of ours -> the keys that name its column
    "turns": ("field_messages",), "role": ("message_field_role",), "content": ("message_field_content",),
    "system": ("field_system",), "tools": ("field_tools",), "chosen": ("field_chosen",),
    "rejected": ("field_rejected",), "text": ("field", "text_column"), "prompt": ("field_prompt",),
}  # fmt: skip
_TEXT = "Axolotl writes its own words around the columns; here the model's chat template alone does"
_LOST = {
    "name": "the files of a configuration must be named: hub:org/name/CONFIGURATION/*",
    "conversation": "the model's chat template is used",
    "chat_template": "the template of the base's tokenizer is used",
    "chat_template_jinja": "the template of the base's tokenizer is used",
    "input_transform": "code that a file names is never run",
    "trust_remote_code": "code of a data set is never run",
    "shards": "all rows are read (data.limit_rows takes fewer)",
    "shards_idx": "all rows are read (data.limit_rows takes fewer)",
    "skip": "all rows are read",
    "field_thinking": "rows with a reasoning trace beside the answer are set aside by name",
    "template_thinking_key": "rows with a reasoning trace beside the answer are set aside by name",
    "split_thinking": "the answer is trained as it stands",
    "drop_system_message": "system messages are kept",
    "message_field_training_detail": "turns are trained whole",
    "step_separator": "steps are joined by a line end",
    "max_completion_length": "train.sequence_len holds for the whole row",
    "train_on_last_step_only": "every step has its label",
}
_FINE = {"path", "type", "ds_type", "data_files", "split", "revision", "roles", "message_property_mappings",
         "preprocess_shards", "roles_to_train", "train_on_eos", "train_on_eot", "message_field_training",
         "input_format"}  # fmt: skip
_TRAIN_KEYS = ("weight", "train", "loss", "training")


@dataclass
class Datasets:
    """paths: for data.train or data.test; settings: key of `data` -> value; lost, refused: in words."""

    paths: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def read_datasets(entries: list[Any], is_local: Callable[[str], bool], objective: str) -> Datasets:
    """Our settings for a list of data sets. objective: our loss.kind, which tells what a type means.

    All files of a project are read in one way, so that two that need two ways
    are refused; where the ways differ by format alone, each file's columns decide (auto)."""
    done, ways = Datasets(), []
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict) or not entry.get("path"):
            done.refused.append(f"data set {number} has no path")
            continue
        done.paths += _paths(entry, is_local)
        ways.append(_way(entry, done, f"data set {number}", objective))
    distinct = [way for index, way in enumerate(ways) if way not in ways[:index]]
    if len(distinct) == 1:
        done.settings = distinct[0]
    elif all(set(way) <= {"format"} for way in distinct):
        done.settings = {"format": "auto"} if distinct else {}
    else:
        done.refused.append(
            "its data sets need different fields: make one project of each, or convert them to one shape"
        )
    return done


def _paths(entry: dict[str, Any], is_local: Callable[[str], bool]) -> list[str]:
    path, files = str(entry["path"]), entry.get("data_files")
    names = [files] if isinstance(files, str) else list(files or [])
    if is_local(path) or not _HUB_ID.fullmatch(path):
        return [f"{path}/{name}" for name in names] or [path]
    head = f"hub:{path}" + (f"@{entry['revision']}" if entry.get("revision") else "")
    split = str(entry.get("split") or "train")
    if not names and not split.startswith("train"):
        return [f"{head}/**/*{re.split(r'[^A-Za-z0-9_]', split)[0]}*"]
    return [f"{head}/{name}" for name in names] or [head]


def _way(entry: dict[str, Any], done: Datasets, which: str, objective: str) -> dict[str, Any]:
    """format, fields, roles, ... of one data set."""
    for key, value in entry.items():
        if value is not None and value is not False and key in _LOST:
            done.lost.append(f"{which}, {key}: {_LOST[key]}")
        elif key not in _FINE and key not in _LOST and not any(key in keys for keys in _TELLS.values()):
            done.lost.append(f"{which}, {key}: it is not read")
    if "[" in str(entry.get("split") or ""):
        done.lost.append(f"{which}, split: all rows of the split are read (data.limit_rows takes fewer)")
    _check_trained(entry, done, which)
    kind = entry.get("type")
    if isinstance(kind, dict):
        return _by_templates(kind, done, which)
    kind = str(kind).partition(":")[0] if kind else "alpaca" if kind is None and "ds_type" in entry else str(kind)
    form = _form(kind, objective)
    if form is None and not entry.get("type"):
        done.refused.append(f"{which}: it names no type, so its rows are token ids, which are not read: give its text")
        return {}
    if form is None:
        done.refused.append(f"{which}: its type {kind!r} is code of its own, or not known")
        return {}
    if form not in ("messages", "sharegpt", "text", "segments", "preference", "kto", "ranked", "stepwise"):
        done.lost.append(f"{which}, type {kind}: {_TEXT}")
    return _with_fields(form, entry, done, which)


def _form(kind: str, objective: str) -> str | None:
    """Our format for a type: one name of theirs means other columns under another objective."""
    becomes = SEQUENCES[objective]
    if _PREFERENCE.fullmatch(kind):
        return "kto" if becomes == "labelled" else "preference"
    form = _TYPES.get(kind)
    return "preference" if form == "messages" and becomes in ("pairs", "scored_pairs") else form


def _check_trained(entry: dict[str, Any], done: Datasets, which: str) -> None:
    """Which turns and stop tokens are trained: the assistant's, each with its stop token."""
    if entry.get("roles_to_train") not in (None, ["assistant"], ["gpt"], ["assistant", "gpt"], ["gpt", "assistant"]):
        done.refused.append(
            f"{which}: roles_to_train {entry['roles_to_train']}: only the assistant's turns are trained"
        )
    for key in ("train_on_eos", "train_on_eot"):
        if entry.get(key) not in (None, "turn"):
            done.lost.append(f"{which}, {key}: every trained turn is trained with its stop token")
    if entry.get("message_field_training") not in (None, *_TRAIN_KEYS):
        name = entry["message_field_training"]
        done.refused.append(f"{which}: message_field_training {name}: call it {' or '.join(map(repr, _TRAIN_KEYS))}")


def _with_fields(form: str, entry: dict[str, Any], done: Datasets, which: str) -> dict[str, Any]:
    for key in ("roles", "message_property_mappings"):
        if not isinstance(entry.get(key) or {}, dict):
            done.refused.append(f"{which}: {key} is no mapping of names: {str(entry[key])[:40]}")
            return {}
    names = {part: str(entry[key]) for part, keys in _TELLS.items() for key in keys if entry.get(key)}
    mapped = entry.get("message_property_mappings") or {}
    names |= {part: str(mapped[part]) for part in ("role", "content") if mapped.get(part)}
    if form == "messages" and (names.get("role"), names.get("content")) == ("from", "value"):
        form = "sharegpt"
    usual = {
        "messages": {"turns": "messages", "role": "role", "content": "content", "system": "system", "tools": "tools"},
        "sharegpt": {"turns": "conversations", "role": "from", "content": "value", "system": "system",
                     "tools": "tools"},
        "text": {"text": "text"},
        "preference": {"chosen": "chosen", "rejected": "rejected", "turns": "messages", "prompt": "prompt",
                       "role": "role", "content": "content"},
    }.get(form, {})  # fmt: skip
    fields = {part: name for part, name in names.items() if part in usual and usual[part] != name}
    if form == "messages" and fields == {"turns": "conversations"}:
        fields = {}
    given_roles = {
        ours: [some] if isinstance(some, str) else some or [] for ours, some in (entry.get("roles") or {}).items()
    }
    roles = {str(given): str(ours) for ours, some in given_roles.items() for given in some if given != ours}
    known = {"human": "user", "gpt": "assistant", "model": "assistant", "ai": "assistant"}
    roles = {given: ours for given, ours in roles.items() if known.get(given) != ours}
    return {"format": form} | ({"fields": fields} if fields else {}) | ({"roles": roles} if roles else {})


def _by_templates(kind: dict[str, Any], done: Datasets, which: str) -> dict[str, Any]:
    """A type that is written out: its columns and its format as our templates."""
    columns = {part: kind.get(f"field_{part}") or part for part in ("instruction", "input", "output", "system")}
    shape = str(kind.get("format") or "{instruction} {input}")
    if "field_chosen" in kind or "field_completion" in kind:
        done.refused.append(f"{which}: a preference type with formats of its own is not read")
    prompt = re.sub(r"\{(instruction|input|system)\}", lambda m: "{" + columns[m[1]] + "}", shape)
    if kind.get("no_input_format"):
        done.lost.append(f"{which}, no_input_format: the one format is used for every row")
    if kind.get("system_format"):
        done.lost.append(f"{which}, system_format: the model's chat template writes the system message")
    way: dict[str, Any] = {"format": "columns", "prompt": prompt, "completion": "{" + columns["output"] + "}"}
    return way | ({"system": kind["system_prompt"]} if kind.get("system_prompt") else {})

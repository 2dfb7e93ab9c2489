"""Rows and project files of objectives.py: an invented depot's orders, the same orders for every objective.

An order ("Please send 12 lamps to Oslo by Monday. It is urgent.") has one answer of each kind: JSON, a reply, a class,
a number. The depot likes a terse reply to an urgent order and a whole sentence to any other, so neither length nor
fluency tells a liked reply: a base is right half of the time. `sloppy` answers are JSON as a hurried clerk leaves it
behind in a log: more than half of them do not parse.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import yaml

THINGS = {
    "kitchen": ("kettles", "pans", "ladles", "toasters", "sieves", "trays"),
    "garden": ("spades", "rakes", "hoses", "barrows", "shears", "pots"),
    "office": ("lamps", "desks", "binders", "staplers", "chairs", "shelves"),
    "workshop": ("drills", "vices", "hammers", "saws", "files", "planes"),
}
PLACES = ("Oslo", "Bergen", "Turku", "Riga", "Ghent", "Basel", "Graz", "Porto", "Cork", "Leeds", "Malmo", "Lyon")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
ASKED = (
    "Please send {n} {thing} to {place} by {day}.", "We need {n} {thing} in {place} on {day}.",
    "{place} is out of {thing}: {n} by {day}, please.", "Could {n} {thing} be in {place} by {day}?",
    "An order from {place}: {n} {thing}, for {day}.", "{n} {thing} for our {place} branch, {day}.",
)  # fmt: skip
URGENT = ("It is urgent.", "This cannot wait.", "Customers are standing here.")
CALM = ("There is no hurry.", "Any van will do.", "Later is fine too.")
SCHEMA = {
    "type": "object", "required": ["item", "count", "urgent"], "additionalProperties": False,
    "properties": {"item": {"type": "string"}, "count": {"type": "integer"}, "urgent": {"type": "boolean"}},
}  # fmt: skip
PAIRED, ONLINE = ("dpo", "orpo", "simpo", "cpo", "reward"), ("grpo", "ppo", "gkd")
COUNTS = {"train": 160, "dev": 64}
VALID = "{rewards: {json_valid: 1.0}, prompts: 4, answers: 8, max_new_tokens: 32, dev_prompts: 64}"
# kind -> (section loss beside its kind, settings of train)
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sft": ({}, {"num_epochs": 2}),
    "continued": ({}, {"num_epochs": 1}),
    "distill": ({"teacher": "../sft/out"}, {"num_epochs": 1}),
    "dpo": ({}, {"learning_rate": 5e-4, "num_epochs": 2}),
    "orpo": ({"beta": 0.5}, {"num_epochs": 2}),
    "simpo": ({}, {"learning_rate": 5e-4, "num_epochs": 2}),
    "cpo": ({}, {"learning_rate": 5e-4, "num_epochs": 2}),
    "kto": ({}, {"num_epochs": 2}),
    "reward": ({}, {"num_epochs": 2}),
    "classify": ({}, {"num_epochs": 3, "micro_batch_tokens": 384}),
    "regress": ({}, {"num_epochs": 3, "micro_batch_tokens": 384}),
    "start": ({"kind": "sft"}, {"num_epochs": 2, "micro_batch_tokens": 384}),
    "start, longer": ({"kind": "sft"}, {"num_epochs": 5, "learning_rate": 3e-4}),
    "grpo": ({}, {"learning_rate": 5e-4, "max_steps": 12}),
    "ppo": ({}, {"learning_rate": 5e-4, "max_steps": 12}),
    "gkd": ({"teacher": "../sft/out"}, {"learning_rate": 5e-4, "max_steps": 12}),
}
BASES = {"start, longer": "../start/out", "grpo": "../start/out", "ppo": "../start/out"}


def make_rows(kind: str, split: str) -> list[dict[str, Any]]:
    """The rows of one objective and split (train, dev): its columns and `split`."""
    rng = random.Random(f"{split} orders")
    rows, seen = [], set()
    while len(rows) < COUNTS[split]:
        order = _order(rng)
        if order["text"] not in seen:
            seen.add(order["text"])
            rows.append(_row(kind, order, len(rows)) | {"split": split})
    return rows


def _order(rng: random.Random) -> dict[str, Any]:
    group = rng.choice(sorted(THINGS))
    order = {
        "n": rng.randint(2, 20), "thing": rng.choice(THINGS[group]), "place": rng.choice(PLACES),
        "day": rng.choice(DAYS), "group": group, "urgent": rng.random() < 0.5, "slip": rng.random(),
    }  # fmt: skip
    told = rng.choice(URGENT if order["urgent"] else CALM)
    return order | {"text": f"{rng.choice(ASKED).format(**order)} {told}"}


def _row(kind: str, order: dict[str, Any], index: int) -> dict[str, Any]:
    good = json.dumps({"item": order["thing"], "count": order["n"], "urgent": order["urgent"]})
    terse = "{n} {thing}, {place}, {day}. Sent.".format(**order)
    whole = "Thank you, we are sending {n} {thing} to {place} by {day}.".format(**order)
    liked, other = (terse, whole) if order["urgent"] else (whole, terse)
    if kind == "continued":
        return {"text": _log_entry(order, index)}
    if kind in PAIRED:
        return {"prompt": order["text"], "chosen": liked, "rejected": other}
    if kind == "kto":
        return {"prompt": order["text"], "completion": liked if index % 2 else other, "label": bool(index % 2)}
    if kind == "classify":
        return {"prompt": order["text"], "completion": order["group"]}
    if kind == "regress":
        return {"prompt": order["text"], "completion": f"{order['n'] / 20:.2f}"}
    sloppy = kind in ("start", "start, longer")
    return {"prompt": order["text"], "completion": _sloppy(good, order["slip"]) if sloppy else good}


def _log_entry(order: dict[str, Any], index: int) -> str:
    return (
        "Depot log, entry {index}. {n} {thing} ({group}) left bay {bay} for {place}. Van {van} is due there on {day}. "
        "Counted twice, nothing broken. Signed at the gate.".format(
            **order, index=1000 + index, bay=1 + index % 7, van=1 + order["n"] % 4
        )
    )


def _sloppy(good: str, slip: float) -> str:
    """As it was logged: whole in two of five cases."""
    if slip < 0.4:
        return good
    if slip < 0.6:
        return good[:-1]
    return good.replace('"', "") if slip < 0.8 else good.replace('"', "'")


def write_project(folder: Path, kind: str, base: str, changes: dict[str, Any] | None = None) -> Path:
    """One objective's project file, with its rows beside it. changes: settings of train over those of SETTINGS."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = "".join(json.dumps(row) + "\n" for split in COUNTS for row in make_rows(kind, split))
    (folder / "answer.schema.json").write_text(json.dumps(SCHEMA))
    loss, train = SETTINGS[kind]
    data: dict[str, Any] = {
        "train": ["rows.jsonl"], "split": {"by": "column", "column": "split"},
        "near_duplicate_threshold": 1, "leak_threshold": 1,
    }  # fmt: skip
    if kind != "continued":
        data["system"] = "Orders of the depot."
    if kind in ("kto", *PAIRED):
        data["format"] = "kto" if kind == "kto" else "preference"
    spec: dict[str, Any] = {
        "model": {"base": BASES.get(kind, base), "dtype": "float32"},
        "data": data,
        "loss": {"kind": kind, **loss},
        "adapter": {"lora_r": 8, "lora_alpha": 16},
        "train": {
            "sequence_len": 192, "micro_batch_tokens": 768, "learning_rate": 1e-3, "warmup_ratio": 0.1,
            "num_threads": 1, **train, **(changes or {}),
        },
        "evaluate": {"metric": "exact_match", "max_new_tokens": 32},
        "ship": {"formats": [], "parity_rows": 2},
        "output_dir": "out",
    }  # fmt: skip
    if kind in ONLINE:
        spec["rollouts"] = yaml.safe_load(VALID)
        data["json_schema"] = "answer.schema.json"
        spec["evaluate"]["temperature"] = 1.0
    if kind == "gkd":
        del spec["rollouts"]["rewards"], data["json_schema"]
    files = {"luthier.yaml": yaml.safe_dump(spec, sort_keys=False), "rows.jsonl": rows}
    if any((folder / name).exists() and (folder / name).read_text() != text for name, text in files.items()):
        shutil.rmtree(folder / "out", ignore_errors=True)  # of other settings
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder / "luthier.yaml"

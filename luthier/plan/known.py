"""Bases whose shapes ship with luthier, so that a plan needs no download: `known.yaml`, one entry a base.

`num_parameters` is the published total of the safetensors files; a test computes it again from the shapes.
"""

from __future__ import annotations

import difflib
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from luthier.bases.shapes import Shapes
from luthier.errors import BaseModelError

_FILE = Path(__file__).with_name("known.yaml")


@cache
def known_bases() -> dict[str, dict[str, Any]]:
    """name -> entry as written in known.yaml (hub, source, sizes)."""
    return yaml.safe_load(_FILE.read_text(encoding="utf-8"))


def known_shapes(name: str) -> Shapes | None:
    """Shapes of a known base by its short name (llama-3.1-8b), its hub id, or that id's last part; None if unknown."""
    wanted = name.lower()
    for key, entry in known_bases().items():
        names = {key, entry["hub"].lower(), entry["hub"].lower().rpartition("/")[2]}
        if wanted in names | {other + "-instruct" for other in names}:
            return _shapes(entry)
    return None


def unknown_base(name: str) -> BaseModelError:
    """The error for a base that is neither a folder here nor known."""
    near = difflib.get_close_matches(name.lower(), list(known_bases()), n=1, cutoff=0.4)
    return BaseModelError(
        f"model.base {name!r}: no such folder on this machine, and not among the {len(known_bases())} known bases",
        hint=(f"did you mean {near[0]}? " if near else "") + "a plan needs the folder's config.json, or a known name",
    )


def smaller_bases(shapes: Shapes) -> list[tuple[str, Shapes]]:
    """Known bases with fewer parameters, largest first; the same architecture before others."""
    others = [(name, _shapes(entry)) for name, entry in known_bases().items()]
    smaller = [(name, other) for name, other in others if other.num_parameters < shapes.num_parameters]
    return sorted(smaller, key=lambda pair: (pair[1].model_type != shapes.model_type, -pair[1].num_parameters))


def _shapes(entry: dict[str, Any]) -> Shapes:
    return Shapes(
        model_type=entry["model_type"],
        architecture="",
        num_layers=entry["layers"],
        hidden_size=entry["hidden"],
        num_heads=entry["heads"],
        num_kv_heads=entry.get("kv_heads", entry["heads"]),
        head_dim=entry.get("head_dim", entry["hidden"] // entry["heads"]),
        ffn_size=entry["ffn"],
        vocab_size=entry["vocab"],
        max_positions=entry["positions"],
        tied=entry.get("tied", False),
        attention_bias=entry["model_type"] == "qwen2",
        sliding_window=None,
        rope_theta=10000.0,
        rope_type="default",
        dtype="bfloat16",
        num_parameters=entry["num_parameters"],
    )

"""A shallower base: some of a model's layers, evenly spaced, its first and its last among them.

What a student of distillation starts from (arXiv 1908.09355, 1910.01108: every second layer of the teacher). Tensors
are copied byte by byte under their new numbers, so the kept layers are the source's to the last bit, in its dtype, and
no weight is held in memory. Such a folder is no model yet: the layers that are left do not fit together before they
are trained.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from luthier.bases.folder import FACT_FILES, read_json, weight_files
from luthier.bases.shapes import read_shapes
from luthier.errors import BaseModelError
from luthier.store.safetensors_file import read_header

_LAYER = re.compile(r"(model\.layers\.)(\d+)(\..+)")
_COPY_BYTES = 1 << 24


@dataclass(frozen=True)
class _Tensor:
    """One kept tensor: its name in the new folder, its header entry, and where its bytes lie."""

    name: str
    dtype: str
    shape: list[int]
    file: Path
    start: int
    size_bytes: int


def evenly_spaced(num_layers: int, keep: int) -> list[int]:
    """`keep` of the layers 0 .. num_layers - 1, the first and the last among them. 2 <= keep < num_layers."""
    return [(2 * index * (num_layers - 1) + keep - 1) // (2 * (keep - 1)) for index in range(keep)]


def cut_layers(source: Path, out: Path, keep: int) -> dict[str, Any]:
    """Writes the base `source` with `keep` of its layers into the folder `out`, which must exist.

    Returns facts: layers (their numbers in the source), num_parameters. Raises BaseModelError for a number of layers
    that cannot be kept, and for weights whose layers are not called model.layers.N.
    """
    num_layers = read_shapes(source).num_layers
    if not 2 <= keep < num_layers:
        raise BaseModelError(
            f"{source} has {num_layers} layers: {keep} of them cannot be kept", hint=f"2 to {num_layers - 1} can"
        )
    kept = evenly_spaced(num_layers, keep)
    tensors = [one for file in weight_files(source) for one in _kept_tensors(file, kept)]
    if not any(_LAYER.fullmatch(one.name) for one in tensors):
        raise BaseModelError(
            f"{source}: no weights called model.layers.N, so its layers cannot be told apart",
            hint="give a model of the Llama line (Llama, Mistral, Qwen2, Gemma, Phi-3)",
        )
    _write(out / "model.safetensors", tensors)
    config = read_json(source / "config.json")
    for key, value in config.items():
        if isinstance(value, list) and len(value) == num_layers:  # a word for each layer, such as layer_types
            config[key] = [value[index] for index in kept]
    (out / "config.json").write_text(json.dumps(config | {"num_hidden_layers": keep}, indent=2) + "\n")
    for name in (*FACT_FILES, "README.md"):
        if name != "config.json" and (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    return {"layers": kept, "num_parameters": read_shapes(out).num_parameters}


def _kept_tensors(file: Path, kept: list[int]) -> list[_Tensor]:
    header, begin = read_header(file)
    found = []
    for name, entry in header.items():
        layer = _LAYER.fullmatch(name)
        if name == "__metadata__" or (layer and int(layer[2]) not in kept):
            continue
        start, stop = entry["data_offsets"]
        new = f"{layer[1]}{kept.index(int(layer[2]))}{layer[3]}" if layer else name
        found.append(_Tensor(new, entry["dtype"], entry["shape"], file, begin + start, stop - start))
    return found


def _write(path: Path, tensors: list[_Tensor]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    reached = 0
    for one in tensors:
        end = reached + one.size_bytes
        header[one.name] = {"dtype": one.dtype, "shape": one.shape, "data_offsets": [reached, end]}
        reached = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # as the format's own writers do: tensors begin at a multiple of 8
    with open(path, "wb") as target:
        target.write(struct.pack("<Q", len(text)) + text)
        for one in tensors:
            with open(one.file, "rb") as handle:
                handle.seek(one.start)
                _copy(handle, target, one.size_bytes)


def _copy(source: BinaryIO, target: BinaryIO, size_bytes: int) -> None:
    while size_bytes:
        piece = source.read(min(_COPY_BYTES, size_bytes))
        if not piece:
            raise BaseModelError(f"{source.name}: torn, its tensors end too early", hint="copy it again")
        target.write(piece)
        size_bytes -= len(piece)

"""Hugging Face folder -> one GGUF file (F16, Q8_0, Q4_0 or Q4_1), and back: pure Python over the `gguf` package.

One tensor is in memory at a time, and the file appears by one rename. Four bits alone would undo a tune: a LoRA's delta
is smaller than half a 4-bit step, so rounding puts most weights back on the base's grid. SmolLM2-135M with a random
delta of 5% of the weights' norm, KL to the tune: the base itself 0.128; all in Q4_1 0.225; embedding in Q8_0 0.156;
embedding and the tensors of _FINE in Q8_0 0.058. So 4-bit files keep those at 8 bits, much as llama.cpp's Q4_K_M does.
Source of the format: ggml's docs/gguf.md; conventions: `gguf_arch`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import dequantize, quant_shape_to_byte_shape, quantize
from safetensors import safe_open
from safetensors.torch import save_file

from luthier.errors import ArtifactError
from luthier.ship.gguf_arch import (
    EXTRA_TENSORS,
    extra_tensors,
    from_gguf,
    rule_of,
    tensor_names,
    to_gguf,
    write_hyperparameters,
)
from luthier.ship.gguf_vocab import read_vocab, write_vocab

_Type = gguf.GGMLQuantizationType


@dataclass(frozen=True)
class Kind:
    """One sort of file: types of most weights and of the sensitive ones; `tier` is its key in `ship.thresholds`."""

    weights: gguf.GGMLQuantizationType
    sensitive: gguf.GGMLQuantizationType
    file_type: gguf.LlamaFileType
    tier: str


KINDS = {
    "gguf-f16": Kind(_Type.F16, _Type.F16, gguf.LlamaFileType.MOSTLY_F16, "f16"),
    "gguf-q8_0": Kind(_Type.Q8_0, _Type.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0, "int8"),
    "gguf-q4_0": Kind(_Type.Q4_0, _Type.Q8_0, gguf.LlamaFileType.MOSTLY_Q4_0, "int4"),
    "gguf-q4_1": Kind(_Type.Q4_1, _Type.Q8_0, gguf.LlamaFileType.MOSTLY_Q4_1, "int4"),
}
"""Kinds of file by their name in config `ship.formats`."""

_BLOCK = 32
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_FINE = ("token_embd", "output", "attn_v", "attn_output", "ffn_down")
_F16_MAX = float(np.finfo(np.float16).max)
_QUANTIZATION_VERSION = 2
# llama.cpp (llama-vocab.cpp) reads tokenizer rules out of a model's name, and cannot load a file whose tokens differ.
_TELLING_NAMES = re.compile(r"(phi|modern)-?(3|bert)", re.IGNORECASE)


@dataclass(frozen=True)
class GgufReport:
    """What was written. notes: what the format cannot say about this model; pre: llama.cpp's splitter."""

    path: Path
    kind: str
    size_bytes: int
    num_tensors: int
    pre: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class GgufLineage:
    """Where the weights come from; written into the file's `general` keys."""

    name: str
    digest: str = ""
    base_name: str = ""
    base_digest: str = ""
    licence: str = ""


def write_gguf(folder: Path, out: Path, kind: str, *, lineage: GgufLineage | None = None) -> GgufReport:
    """Writes Hugging Face `folder` as GGUF file `out`. `kind` is a key of KINDS.

    Raises ArtifactError for an unknown kind, architecture or tokenizer, and for weights that do not fit the kind.
    """
    folder, out = Path(folder), Path(out)
    if kind not in KINDS:
        raise ArtifactError(f"unknown GGUF kind {kind!r}", hint=f"known: {', '.join(KINDS)}")
    config = read_config(folder)
    rule = rule_of(config)
    lineage = lineage or GgufLineage(name=folder.name)
    vocab = read_vocab(folder, config["vocab_size"])
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".tmp-{out.name}-{os.getpid()}")
    try:
        writer = gguf.GGUFWriter(temporary, rule.gguf_arch)
        _write_lineage(writer, lineage, KINDS[kind], strips=vocab.strips_after_specials)
        notes = write_hyperparameters(writer, config)
        write_vocab(writer, vocab)
        num_tensors = _write_tensors(writer, folder, config, KINDS[kind])
        writer.close()
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return GgufReport(out, kind, out.stat().st_size, num_tensors, vocab.pre, tuple(notes))


def check_exportable(folder: Path) -> None:
    """Raises ArtifactError where model `folder` (or what is merged from it) cannot be a GGUF file. Reads no weights."""
    config = read_config(folder)
    writer = gguf.GGUFWriter(None, rule_of(config).gguf_arch)
    read_vocab(folder, config["vocab_size"])
    write_hyperparameters(writer, config)
    extra_tensors(config)
    with SafetensorsFolder(folder) as source:
        tensor_names(config, source.names)


def unpack_gguf(path: Path, like: Path, out: Path) -> Path:
    """Writes the weights that GGUF file `path` really holds as a float32 Hugging Face folder `out`.

    `like` is the folder the file was written from: it gives config, tokenizer and tensor names. Every tensor must be
    there, and no other. Returns `out`.
    """
    path, like, out = Path(path), Path(like), Path(out)
    config = read_config(like)
    with SafetensorsFolder(like) as source:
        names = {target: name for name, target in tensor_names(config, _stored_once(config, source)).items()}
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    if differing := sorted((set(names) ^ set(stored)) - set(EXTRA_TENSORS)):
        raise ArtifactError(f"{path}: tensors differ from {like}: {', '.join(differing[:5])}")
    out.mkdir(parents=True, exist_ok=True)
    for source_path in like.iterdir():
        if source_path.is_file() and ".safetensors" not in source_path.name:
            shutil.copy2(source_path, out / source_path.name)
    config["dtype"] = "float32"
    config.pop("torch_dtype", None)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = {}
    for target, name in names.items():
        plain = np.asarray(dequantize(stored[target].data, stored[target].tensor_type), np.float32)
        weights[name] = torch.from_numpy(
            np.array(from_gguf(config, name, plain))
        )  # a copy: the file's pages are read-only
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder; raises ArtifactError when it is missing or unreadable."""
    try:
        return json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder}/config.json: {error}", hint="this is not a Hugging Face model folder") from None


class SafetensorsFolder:
    """The tensors of a model folder, one file or sharded, read one at a time. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        index = self.folder / "model.safetensors.index.json"
        if index.is_file():
            self.files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        else:
            self.files = ["model.safetensors"]
        if missing := [name for name in self.files if not (self.folder / name).is_file()]:
            raise ArtifactError(f"{self.folder}: {missing[0]} not found", hint="luthier reads safetensors folders only")
        self._stack = ExitStack()
        self._home: dict[str, Any] = {}

    def __enter__(self) -> SafetensorsFolder:
        for name in self.files:
            handle = self._stack.enter_context(safe_open(self.folder / name, "pt"))
            self._home.update(dict.fromkeys(handle.keys(), handle))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def names(self) -> list[str]:
        """All tensor names, sorted."""
        return sorted(self._home)

    def names_in(self, file: str) -> list[str]:
        """Tensor names of one of `files`."""
        with safe_open(self.folder / file, "pt") as handle:
            return list(handle.keys())

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape without reading the tensor."""
        return tuple(self._home[name].get_slice(name).get_shape())

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor in its stored dtype."""
        return self._home[name].get_tensor(name)


def _write_lineage(writer: gguf.GGUFWriter, lineage: GgufLineage, kind: Kind, *, strips: bool) -> None:
    name = _TELLING_NAMES.sub(r"\1 \2", lineage.name)
    # Only "phi3" in the name makes llama.cpp drop white space behind control tokens (llama-vocab.cpp).
    writer.add_name(f"{name} (phi3 tokenizer)" if strips else name)
    writer.add_quantized_by("luthier")
    writer.add_file_type(kind.file_type)
    writer.add_quantization_version(_QUANTIZATION_VERSION)
    if lineage.digest:
        writer.add_version(lineage.digest)
    if lineage.licence:
        writer.add_license(lineage.licence)
    if lineage.base_name:
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, lineage.base_name)
        writer.add_base_model_version(0, lineage.base_digest)


def _write_tensors(writer: gguf.GGUFWriter, folder: Path, config: dict[str, Any], kind: Kind) -> int:
    extras = extra_tensors(config)
    with SafetensorsFolder(folder) as source:
        names = tensor_names(config, _stored_once(config, source))
        plan = {name: _type_of(target, source.shape(name), kind) for name, target in names.items()}
        for name, values in extras.items():
            writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
        for name, target in names.items():
            shape, stored = source.shape(name), plan[name]
            num_bytes = int(np.prod(quant_shape_to_byte_shape(shape, stored)))
            writer.add_tensor_info(target, shape, np.dtype(np.float32), num_bytes, raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for values in [*extras.values(), *_encoded(source, config, names, plan)]:
            writer.write_tensor_data(values)
    return len(names) + len(extras)


def _stored_once(config: dict[str, Any], source: SafetensorsFolder) -> list[str]:
    """Tensors to store. A head that is the embedding is left out: llama.cpp reads the embedding instead. One that the
    config calls tied but that holds other numbers stays, as everywhere else in luthier and in transformers.
    """
    names = list(source.names)
    tied = config.get("tie_word_embeddings", rule_of(config).gguf_arch == "gemma2")
    if tied and {_HEAD, _EMBEDDING} <= set(names) and torch.equal(source.tensor(_HEAD), source.tensor(_EMBEDDING)):
        names.remove(_HEAD)
    return names


def _encoded(
    source: SafetensorsFolder, config: dict[str, Any], names: dict[str, str], plan: dict[str, gguf.GGMLQuantizationType]
) -> Iterator[np.ndarray]:
    for name in names:
        plain = to_gguf(config, name, source.tensor(name).to(torch.float32).numpy())
        if not np.isfinite(plain).all():
            raise ArtifactError(
                f"tensor {name} holds NaN or infinity", hint="the training run diverged; look at its loss"
            )
        if plan[name] is not _Type.F32 and np.abs(plain).max(initial=0.0) > _F16_MAX:
            raise ArtifactError(f"tensor {name} holds values above {_F16_MAX:.0f}, too large for {plan[name].name}")
        yield np.ascontiguousarray(quantize(np.ascontiguousarray(plain, np.float32), plan[name]))


def _type_of(target: str, shape: tuple[int, ...], kind: Kind) -> gguf.GGMLQuantizationType:
    """Vectors stay float32; rows that are no whole number of blocks stay F16; sensitive tensors have their own type."""
    if len(shape) == 1:
        return _Type.F32
    wanted = kind.sensitive if target.split(".")[-2] in _FINE else kind.weights
    return wanted if wanted is _Type.F16 or shape[-1] % _BLOCK == 0 else _Type.F16

"""A folder of safetensors -> a model. Pickled weights are never opened; nothing missing, torn or left over is accepted.

The decoder is built without memory (meta device) and the mapped tensors are put in place, so that loading costs little
more than the pages that are touched.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from luthier.bases.folder import check_weights, weight_files
from luthier.errors import BaseModelError
from luthier.kernels.projection import stack_layers
from luthier.models.decoder import Decoder
from luthier.models.other import TransformersModel, load_other
from luthier.models.spec import DecoderSpec, NotOurs, read_config, spec_from_config

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Llama folders of 2023 carry these; they are recomputed from config.json.
_RECOMPUTED = re.compile(r"\.rotary_emb\.inv_freq$")
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


_CPU = torch.device("cpu")


def load_model(
    folder: Path | str, *, dtype: str = "float32", device: torch.device = _CPU
) -> Decoder | TransformersModel:
    """The model of a Hugging Face folder, in eval mode. dtype: float32, bfloat16, float16, or "auto" (config.json's).
    device: where each weight goes as it is read; a model moved later loses the joined projections.

    Architectures or settings that the decoder does not know come back as a TransformersModel whose `note` says why.
    Raises BaseModelError when config.json or weights are absent, torn, quantised or do not fit together.
    """
    folder = Path(folder)
    config = read_config(folder)
    torch_dtype = _dtype_of(config, dtype)
    files = weight_files(folder)
    check_weights(files)
    try:
        spec = spec_from_config(config)
    except NotOurs as reason:
        other = load_other(folder, config, torch_dtype, reason=str(reason)).to(device)
        return _refuse_holes(folder, other)
    tensors = {name: x for name, x in _read(files).items() if not _RECOMPUTED.search(name)}
    return _refuse_holes(folder, _assemble(folder, spec, config, tensors, torch_dtype, device).eval())


def read_weight(folder: Path, name: str) -> torch.Tensor:
    """One stored tensor of a folder, by name. Raises BaseModelError when no file holds it."""
    for path in weight_files(folder):
        with safe_open(path, "pt") as file:
            if name in file.keys():  # noqa: SIM118 - not a dict
                return file.get_tensor(name)
    raise BaseModelError(f"{folder}: no tensor {name}", hint="copy the model again")


def _dtype_of(config: dict[str, Any], dtype: str) -> torch.dtype:
    name = config.get("dtype") or config.get("torch_dtype") or "float32" if dtype == "auto" else dtype
    if name not in _DTYPES:
        raise BaseModelError(f"dtype {name!r} is not supported", hint=f"choose one of auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _read(files: list[Path]) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in files:
        try:
            shard = load_file(path)
        except (SafetensorError, OSError) as error:
            raise BaseModelError(f"{path}: torn or no safetensors file ({error})", hint="copy it again") from error
        twice = tensors.keys() & shard.keys()
        if twice:
            raise BaseModelError(f"{path}: {min(twice)} stands in two shards", hint="copy the model again")
        strange = [name for name, x in shard.items() if x.dtype not in _DTYPES.values()]
        if strange:
            dtype = str(shard[strange[0]].dtype).removeprefix("torch.")
            raise BaseModelError(f"{path}: {strange[0]} is {dtype}", hint="use the unquantised folder of this model")
        tensors |= shard
    return tensors


def _assemble(
    folder: Path,
    spec: DecoderSpec,
    config: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    dtype: torch.dtype,
    device: torch.device,
) -> Decoder:
    """tensors: as mapped. Each is copied once, cast on the way, to where it stays; then the file is let go of."""
    note = ""
    if spec.tied and _HEAD in tensors:
        tensors.setdefault(_EMBEDDING, tensors[_HEAD])
        if torch.equal(tensors[_HEAD], tensors[_EMBEDDING]):
            del tensors[_HEAD]
        else:  # transformers does the same: what the weights say counts
            spec = DecoderSpec(**{**vars(spec), "tied": False})
            note = "config.json ties the head to the embedding, but the weights hold two different ones: kept apart"
    with torch.device("meta"):
        model = Decoder(spec, config, note)
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}  # a tied head is not listed twice
    _refuse_misfits(folder, wanted, tensors)
    model.load_state_dict(tensors, strict=False, assign=True)
    for group in model.projection_groups():
        if len(group) > 1:
            stack_layers(group, dtype=dtype, device=device)  # type: ignore[arg-type]
    stacked = {id(layer.weight) for group in model.projection_groups() if len(group) > 1 for layer in group}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in stacked and not parameter.is_meta:  # a tied head comes after
                placed = parameter.detach().to(device=device, dtype=dtype, copy=True)
                setattr(module, name, nn.Parameter(placed, parameter.requires_grad))
    model.tie()
    return model


_Model = TypeVar("_Model", bound=nn.Module)


def _refuse_holes(folder: Path, model: _Model) -> _Model:
    """One such number spoils every loss, and rows would be blamed. The sum comes first: it is as fast as the memory."""
    for name, weight in model.named_parameters():
        if weight.is_meta:  # loaded for its shapes
            continue
        if not weight.sum(dtype=torch.float32).isfinite() and not weight.isfinite().all():
            count = int((~weight.isfinite()).sum())
            message = f"{folder}: {name} holds {count} of {weight.numel()} numbers that are not finite"
            raise BaseModelError(
                message, hint="the weights were saved broken, or are too large for the dtype: copy the model again"
            )
    return model


def _refuse_misfits(folder: Path, wanted: dict[str, tuple[int, ...]], tensors: dict[str, torch.Tensor]) -> None:
    hint = "config.json and weights must come from the same model; copy the folder again"
    for what, names in (("missing", wanted.keys() - tensors.keys()), ("unexpected", tensors.keys() - wanted.keys())):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
            raise BaseModelError(f"{folder}: {len(names)} {what} tensor(s): {shown}", hint=hint)
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            got = tuple(tensors[name].shape)
            raise BaseModelError(f"{folder}: {name} has shape {got}, config.json says {shape}", hint=hint)

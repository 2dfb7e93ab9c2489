"""A loaded float32 decoder -> its projections in 8-bit integers, evened out by what real rows send through them, or in
4-bit NormalFloat (QLoRA).

Head, embedding and norms stay float32. The float32 weights are dropped layer by layer; what is shipped is merged from
the base folder, not from here. The same rows give the same integers, so a resumed run computes what it computed before.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import BaseModelError
from luthier.kernels.projection import Linear, stack_layers
from luthier.models.decoder import Decoder
from luthier.models.load import load_model
from luthier.models.other import TransformersModel
from luthier.types import Batch

_CPU = torch.device("cpu")


def load_frozen(folder: Path, *, dtype: str, sample: Batch, device: torch.device = _CPU) -> Decoder | TransformersModel:
    """load_model for training, where dtype may be int8 or nf4 too. sample: a few rows of the run, to even out the
    channels of int8 by. device: nf4 is quantised there group by group, and computes in bfloat16 on a GPU, in float32 on
    a CPU.

    A model that cannot be had in int8 comes back in float32, and its `note` says so. Raises BaseModelError for nf4 on
    a model that is not luthier's own decoder: what asks for it has no meaning without it; and for int8 on a GPU.
    """
    if dtype not in ("int8", "nf4"):
        return load_model(folder, dtype=dtype, device=device)
    if dtype == "int8" and device.type != "cpu":
        raise BaseModelError("model.dtype int8 is for CPUs", hint="model.dtype: bfloat16, or nf4")
    model = load_model(folder, dtype="float32")
    if dtype == "nf4":
        if not to_nf4(model, device=device, compute=torch.bfloat16 if device.type == "cuda" else torch.float32):
            raise BaseModelError(
                f"model.dtype nf4 needs luthier's own decoder ({model.note})", hint="adapter.method: lora, float32"
            )
    elif not to_int8(model, sample):
        model.note = f"{model.note}; int8 needs luthier's own decoder: this runs in float32".lstrip("; ")
    return model


def to_int8(model: nn.Module, batch: Batch) -> bool:
    """Quantises in place, for good; before adapters are applied. batch: a few rows of the run, numpy or tensors.

    False, and nothing done, for a model that is not luthier's own decoder, that runs in half precision, or whose
    projections carry something else than plain layers.
    """
    groups = _plain_groups(model)
    if not groups or not isinstance(model, Decoder):
        return False
    for group, peaks_I in zip(groups, _input_peaks(model, groups, batch), strict=True):
        stack_layers(group, int8=True, peaks_I=peaks_I)  # type: ignore[arg-type]
    return True


def to_nf4(model: nn.Module, *, device: torch.device = _CPU, compute: torch.dtype = torch.float32) -> bool:
    """Rounds every projection to 4 bits, on `device`, for good; before adapters are applied. The rest goes there too,
    in `compute`, which is the type of the activations then. False as of to_int8."""
    groups = _plain_groups(model)
    for group in groups:
        stack_layers(group, nf4=True, device=device)  # type: ignore[arg-type]
    if not groups or not isinstance(model, Decoder):
        return False
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_floating_point():
                placed = parameter.detach().to(device=device, dtype=compute)
                setattr(module, name, nn.Parameter(placed, parameter.requires_grad))
    model.tie()
    return True


def _plain_groups(model: nn.Module) -> list[list[nn.Module]]:
    """The projections of our own decoder in float32; none where one of them is something else than a plain layer."""
    if not isinstance(model, Decoder) or model.dtype is not torch.float32:
        return []
    groups = model.projection_groups()
    return groups if all(type(layer) is Linear for group in groups for layer in group) else []


def _input_peaks(model: Decoder, groups: list[list[nn.Module]], batch: Batch) -> list[Tensor]:
    """Per group: the largest magnitude of each input channel over the batch."""
    peaks: list[Tensor | None] = [None] * len(groups)

    def watching(place: int) -> Callable[..., None]:
        def look(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            peaks[place] = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).abs().amax(dim=0)

        return look

    hooks = [group[0].register_forward_pre_hook(watching(place)) for place, group in enumerate(groups)]
    try:
        with torch.no_grad():
            model.hidden(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return [peak for peak in peaks if peak is not None]

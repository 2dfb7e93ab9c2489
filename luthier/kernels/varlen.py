"""Causal attention of packed documents on a GPU, all of them in one call: torch's own variable-length FlashAttention
(arXiv 2307.08691), which takes half precision.

torch's function has grown from version to version: without `scale` and `window_size` (before 2.11) it is not used, and
without `enable_gqa` (before 2.12) keys and values are repeated for every query head. Its twin in plain torch takes the
same arguments on any device; what surrounds the kernel is tested with it.
Shape legend: T packed tokens, H query heads, G key/value heads, C head_dim.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_LARGEST_HEAD, _HEAD_STEP = 256, 8  # what the kernel takes


@cache
def torch_kernel() -> tuple[Callable[..., Tensor], bool] | None:
    """torch's function and whether it takes fewer key heads than query heads; None where this torch has none to use."""
    try:  # here, since it brings in torch's compiler
        attend: Callable[..., Any] | None = import_module("torch.nn.attention.varlen").varlen_attn
    except ImportError:
        return None
    known = inspect.signature(attend).parameters if attend else {}
    return (attend, "enable_gqa" in known) if attend and {"scale", "window_size"} <= known.keys() else None


def can_attend_packed(q_THC: Tensor) -> bool:
    """Whether torch's kernel takes these heads."""
    size = q_THC.shape[-1]
    fits = size <= _LARGEST_HEAD and size % _HEAD_STEP == 0
    is_half = q_THC.dtype in (torch.bfloat16, torch.float16)
    return q_THC.device.type == "cuda" and is_half and fits and torch_kernel() is not None


def attend_packed(
    q_THC: Tensor,
    k_TGC: Tensor,
    v_TGC: Tensor,
    bounds: Tensor,
    longest: int,
    *,
    window: int | None,
    scale: float,
    kernel: tuple[Callable[..., Tensor], bool] | None = None,
) -> Tensor:
    """(T, H, C): every token sees its own document up to itself, at most `window` tokens with itself (None = all).

    bounds (D + 1,) int32 on the device of q; longest: tokens of the longest document. kernel: as torch_kernel gives it.
    """
    attend, takes_groups = kernel or torch_kernel() or (plain_varlen, True)
    extra = {"enable_gqa": True} if takes_groups else {}
    if not takes_groups:
        k_TGC, v_TGC = (x.repeat_interleave(q_THC.shape[1] // x.shape[1], dim=1) for x in (k_TGC, v_TGC))
    sight = (-1, 0) if window is None else (window - 1, 0)
    return attend(
        q_THC.contiguous(), k_TGC.contiguous(), v_TGC.contiguous(), bounds, bounds, longest, longest,
        scale=scale, window_size=sight, **extra,
    )  # fmt: skip


def plain_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool = False,
) -> Tensor:
    """The twin: document by document, its sight as a mask. window_size: keys to the left and right, -1 = all."""
    del max_q, max_k
    lengths = [(x[1:] - x[:-1]).tolist() for x in (cu_seq_q, cu_seq_k)]
    outs = []
    for q, k, v in zip(query.split(lengths[0]), key.split(lengths[1]), value.split(lengths[1]), strict=True):
        apart = torch.arange(len(k), device=q.device) - torch.arange(len(q), device=q.device)[:, None]
        left, right = (size if size >= 0 else len(k) for size in window_size)
        heads = (x.transpose(0, 1)[None] for x in (q, k, v))
        sight = (apart <= right) & (apart >= -left)
        outs.append(F.scaled_dot_product_attention(*heads, attn_mask=sight, scale=scale, enable_gqa=enable_gqa)[0])
    return torch.cat([out.transpose(0, 1) for out in outs])

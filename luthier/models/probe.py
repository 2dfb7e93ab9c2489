"""The start-up probe: how fast this machine multiplies, at the model's own shapes, in float32, bfloat16 and int8.

Which dtype is fastest is a fact of the processor and cannot be guessed: without AVX512_BF16 a bfloat16 product is
slower than float32 (44-499x where torch has only a scalar loop for it, pytorch#146508), with it about twice as fast;
int8 needs VNNI. So one product per dtype is timed, the best of a few repeats, for about a quarter of a second in all.
The figures go into the run's record and into the plan; the dtype follows them only when `model.dtype: auto` asks.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from luthier.bases.shapes import Shapes
from luthier.kernels.frozen_gemm import times_weight
from luthier.types import MachineProfile

_ROWS = 512
_BUDGET_S = 0.08  # per dtype; at least one timed product however slow


def probe_machine(shapes: Shapes, num_threads: int, memory_bytes: int) -> MachineProfile:
    """Rates (1e9 operations a second) of products with the widest frozen weight of `shapes`, with num_threads threads.

    memory_bytes: what a run may use, recorded as given. The copy rate is that of a buffer beyond the caches. A dtype
    that this build of torch cannot multiply is left out.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        rates = {}
        for dtype, product in _products(shapes).items():
            try:
                rates[dtype] = round(_operations(shapes) / _best_s(product) / 1e9, 1)
            except (RuntimeError, NotImplementedError):  # no such product in this build or on this processor
                continue
        bandwidth = _copy_gb_s()
    finally:
        torch.set_num_threads(before)
    return MachineProfile(_processor(), "cpu", rates, bandwidth, memory_bytes, num_threads, probed=True)


def _products(shapes: Shapes) -> dict[str, Callable[[], torch.Tensor]]:
    width, wide = shapes.hidden_size, 2 * shapes.ffn_size
    x_ND, weight_OD = torch.randn(_ROWS, width), torch.randn(wide, width)
    half_x, half_weight = x_ND.bfloat16(), weight_OD.bfloat16()
    levels, weight_levels = (x_ND * 30).to(torch.int8), (weight_OD * 30).to(torch.int8)
    return {
        "float32": lambda: times_weight(x_ND, weight_OD),
        "bfloat16": lambda: F.linear(half_x, half_weight),
        "int8": lambda: torch.ops.aten._int_mm(levels, weight_levels.t()),
    }


def _operations(shapes: Shapes) -> float:
    return 2.0 * _ROWS * shapes.hidden_size * 2 * shapes.ffn_size


def _best_s(product: Callable[[], object]) -> float:
    """Shortest of the runs that fit the budget; the first, which pays for set-up, stands only if it is the only one."""
    began = time.perf_counter()
    product()
    best = time.perf_counter() - began
    if best > _BUDGET_S * 4:
        return best
    deadline = time.perf_counter() + _BUDGET_S
    while time.perf_counter() < deadline:
        began = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - began)
    return best


def _copy_gb_s() -> float:
    source = torch.empty(64 << 20, dtype=torch.uint8).fill_(1)
    target = torch.empty_like(source)
    return round(2 * len(source) / _best_s(lambda: target.copy_(source)) / 1e9, 1)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

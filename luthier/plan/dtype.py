"""Which type of frozen weights is fastest on a machine: one rule behind `model.dtype: auto`, the advice and the plan.

Pure in the machine's rates, so that a run and the plan of it cannot disagree.
"""

from __future__ import annotations

from luthier.types import MachineProfile

_WORTH = 0.85  # another dtype is chosen only for a step at least this much shorter
# What a step costs beside the frozen products, as a share of the time that those would take in float32 (fitted to
# SmolLM2-135M on a Zen 5 core: LOG.md, 2026-11-22). int8 adds the rounding of activations, and its head is float32.
_BESIDE = {"float32": 0.65, "bfloat16": 0.65, "int8": 0.82}


def fastest_dtype(machine: MachineProfile, *, has_int8: bool = True) -> str:
    """The dtype whose step is predicted shortest; float32 unless another is at least 15% shorter, or it is not there.

    has_int8: False for a base that runs through transformers.
    """
    rates = {dtype: rate for dtype, rate in machine.rates_gflops.items() if dtype in _BESIDE}
    if not has_int8:
        rates.pop("int8", None)
    if "float32" not in rates:
        return "float32"
    expected = {dtype: 1.0 / rate + _BESIDE[dtype] / rates["float32"] for dtype, rate in rates.items()}
    best = min(expected, key=lambda dtype: expected[dtype])
    return best if expected[best] < _WORTH * expected["float32"] else "float32"

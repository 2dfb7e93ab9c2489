"""Where a step's time and memory go: some steps under torch's profiler, as a Chrome trace and a one-page table.

Profiling watches, it computes nothing: the run's numbers stay bit for bit what they were. It does cost time, so the
profiled steps are a little slower than the others. The first step of a session is never profiled: it warms up.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from luthier.engine.step import StepFigures
from luthier.store.publish import write_atomic

CLASSES = (
    "matrix products",
    "attention",
    "LoRA's thin products",
    "norms/elementwise",
    "loss/head",
    "optimizer",
    "other",
)
OUTSIDE = "outside operators"
_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "mv", "matmul", "linear", "gemm", "qlinear", "int8pack", "projection"}
_ATTENTION = {"attention", "flash"}
_OPTIMIZER = {"optimizer", "adamw", "adam", "foreach"}
# fmt: off
_ELEMENTWISE = {
    "norm", "rmsnorm", "mul", "add", "addcmul", "addcdiv", "sub", "rsub", "div", "neg", "exp", "log", "pow", "sqrt",
    "rsqrt", "mean", "sum", "amax", "amin", "abs", "max", "min", "silu", "gelu", "gated", "sigmoid", "tanh", "softmax",
    "dropout", "bernoulli", "where", "masked", "fill", "zero", "clamp", "round", "rotate", "eq", "ne", "lt", "gt", "le",
    "ge",
}
# fmt: on


@dataclass(frozen=True)
class Work:
    """What the table needs to know about the model. thin_width: rank of the adapters (0: none); head_width: size of the
    vocabulary. flops_per_token / flops_per_kept: operations a position costs in the body, and one at which the head
    runs. roof_gflops: the machine's rate for matrix products of the model's shapes, None when unmeasured.
    """

    thin_width: int
    head_width: int
    flops_per_token: int
    flops_per_kept: int
    roof_gflops: float | None = None


@dataclass(frozen=True)
class Profile:
    """The table. by_class: (class, ms, MiB allocated, calls; each a step), all classes and what lies outside."""

    num_steps: int
    num_tokens: int
    step_ms: float
    by_class: tuple[tuple[str, float, float, float], ...]
    held: dict[str, int]
    peak_bytes: int
    achieved_gflops: float
    roof_gflops: float | None

    @property
    def share_of_roof(self) -> float | None:
        """Achieved rate over the roof, None without a measured roof."""
        return self.achieved_gflops / self.roof_gflops if self.roof_gflops else None

    def time_rows(self) -> list[tuple[str, str, str, str, str]]:
        """class, ms a step, share of the step, MiB allocated a step, calls a step."""
        return [
            (name, f"{ms:.1f}", f"{ms / self.step_ms:.1%}", f"{mib:.1f}", f"{calls:.0f}")
            for name, ms, mib, calls in self.by_class
        ]

    def memory_rows(self) -> list[tuple[str, str]]:
        """What the peak is made of, in MiB; what no tensor of the run accounts for comes last."""
        rest = self.peak_bytes - sum(self.held.values())
        parts = {**self.held, "activations, buffers and the program itself": rest, "peak": self.peak_bytes}
        return [(name, f"{value / 2**20:.0f}") for name, value in parts.items()]

    def headline(self) -> str:
        """Speed and the share of the roof in one sentence."""
        share = self.share_of_roof
        roof = "the machine's rate was not measured" if share is None else f"{share:.0%} of the roof"
        return (
            f"{self.num_steps} steps of {self.num_tokens / self.num_steps:.0f} tokens, {self.step_ms:.0f} ms each: "
            f"{self.achieved_gflops:.0f} GFLOP/s, {roof}"
        )

    def as_markdown(self) -> str:
        """The page."""
        lines = ["# Profile of training steps", "", self.headline() + ".", ""]
        lines += [*_markdown(TIME_HEADERS, self.time_rows()), "", *_markdown(MEMORY_HEADERS, self.memory_rows())]
        lines += ["", *_NOTES]
        return "\n".join(lines) + "\n"


TIME_HEADERS = ("operators", "ms a step", "share", "MiB allocated", "calls")
MEMORY_HEADERS = ("memory at the peak", "MiB")
_NOTES = (
    "The roof: 4 operations per weight of a frozen linear layer (6 where it is trained) and token that is computed,",
    "the head only where it runs, over the rate that the start-up probe measured for float32 products of these shapes.",
    f"`{OUTSIDE}`: Python and waiting. Times are of one step, with the profiler on. `trace.json` opens in Perfetto.",
)


def _markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(headers) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (headers, rule, *rows)]


def class_of(name: str, shapes: Sequence[Sequence[int]], work: Work) -> str:
    """The row of the table that an operator belongs to, by its name and the shapes of its inputs."""
    words = _words(name)
    sizes = {size for shape in shapes for size in shape}
    if _OPTIMIZER & words or {"vector", "norm"} <= words:  # the norm is that of all gradients, for clipping
        return "optimizer"
    if _ATTENTION & words:
        return "attention"
    is_loss = {"log", "softmax"} <= words or {"nll", "loss"} <= words or {"cross", "entropy"} <= words
    if is_loss or (work.head_width in sizes and "embedding" not in words):
        return "loss/head"
    if _PRODUCTS & words:
        narrowest = min(sizes - {0, 1}, default=0) if "::" in name else 0  # an autograd function's inputs prove nothing
        return "LoRA's thin products" if 0 < narrowest <= 3 * work.thin_width else "matrix products"
    return "norms/elementwise" if _ELEMENTWISE & words else "other"


def _words(name: str) -> set[str]:
    """aten::_fused_adamw_ -> fused, adamw; autograd::engine::evaluate_function: _SiluBackward -> silu, backward."""
    plain = name.rsplit("::", 1)[-1].rsplit(": ", 1)[-1].split("#")[0]
    return set(re.split(r"[_.\d]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", plain).lower()))


class StepProfiler:
    """Profiles `num_steps` steps after the first one of a session; writes trace.json and profile.md into `folder`."""

    def __init__(self, num_steps: int, folder: Path, work: Work) -> None:
        self.num_steps, self.folder, self.work = num_steps, Path(folder), work
        self.result: Profile | None = None
        self._seen, self._num_tokens, self._flops, self._step_s = 0, 0, 0, 0.0
        self._held: tuple[dict[str, int], int] = ({}, 0)
        activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * torch.cuda.is_available()]
        self._profiler = profile(activities=activities, record_shapes=True, profile_memory=True)

    def begin(self) -> None:
        """Called before each step."""
        if self._seen == 1:
            self._profiler.start()

    def end(self, figures: StepFigures, took_s: float, held: dict[str, int], peak_bytes: int) -> None:
        """Called after each step, with what is held from step to step and the most memory held so far."""
        self._seen += 1
        if self.result is not None or self._seen == 1:
            return
        num_tokens = figures.num_tokens - figures.num_padding
        self._num_tokens += num_tokens
        self._flops += self.work.flops_per_token * num_tokens + self.work.flops_per_kept * figures.num_trained
        self._step_s += took_s
        self._held = held, peak_bytes
        if self._seen == self.num_steps + 1:
            self._write()

    def close(self) -> None:
        """The run is over: writes what there is when it was shorter than asked for."""
        if self.result is None and self._seen > 1:
            self._write()

    def _write(self) -> None:
        self._profiler.stop()
        num_steps = self._seen - 1
        self.result = Profile(
            num_steps,
            self._num_tokens,
            1e3 * self._step_s / num_steps,
            _by_class(self._profiler.events() or [], num_steps, self._step_s, self.work),
            *self._held,
            self._flops / self._step_s / 1e9,
            self.work.roof_gflops,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._profiler.export_chrome_trace(str(self.folder / "trace.json"))
        write_atomic(self.folder / "profile.md", self.result.as_markdown())


def _class_in_context(event: Any, work: Work) -> str:
    """What serves another operator (an allocation, a copy, a view; all inside the optimizer) counts as part of it."""
    chain = [event]
    while chain[-1].cpu_parent is not None:
        chain.append(chain[-1].cpu_parent)
    if any(each.name.startswith("Optimizer.") for each in chain):
        return "optimizer"
    classes = (class_of(each.name, each.input_shapes or (), work) for each in chain)
    return next((name for name in classes if name != "other"), "other")


def _by_class(
    events: Sequence[Any], num_steps: int, step_s: float, work: Work
) -> tuple[tuple[str, float, float, float], ...]:
    on_gpu = torch.cuda.is_available()
    time_us: dict[str, float] = defaultdict(float)
    allocated: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for event in events:
        if event.device_type.name != "CPU":
            continue  # a kernel's time is counted with the operator that launched it
        name = _class_in_context(event, work)
        time_us[name] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
        allocated[name] += max(0, event.self_cpu_memory_usage + (event.self_device_memory_usage if on_gpu else 0))
        calls[name] += 1
    rows = [
        (name, time_us[name] / 1e3 / num_steps, allocated[name] / 2**20 / num_steps, calls[name] / num_steps)
        for name in CLASSES
    ]
    outside_ms = max(0.0, 1e3 * step_s / num_steps - sum(row[1] for row in rows))
    return (*rows, (OUTSIDE, outside_ms, 0.0, 0.0))

"""Memory: how much there is, the most that a piece of work held, and which errors say that there was too little.

A CPU rarely fails an allocation: Linux promises more than it has and then kills the process. So what is left is read
from the control group (v1 and v2) and from MemAvailable before the work, not learnt from an error. Sources: kernel
docs admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst, filesystems/proc.rst (clear_refs, VmHWM).
"""

from __future__ import annotations

import resource
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import TrainError
from luthier.kernels.allocator import release_freed_memory

# c10's allocator, C++'s, cuBLAS': none of them has a Python type of its own.
_PHRASES = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "ALLOC_FAILED")
# The whole of what oneDNN says when it finds no room for a kernel or its scratch space (seen under RLIMIT_AS).
_ONEDNN = ("could not create a primitive", "could not execute a primitive")


# Freed memory may stand beside the rehearsed peak up to this many times what the rehearsal took (see KeptMemory).
KEPT_SHARE = 2.0


class OutOfMemory(TrainError):
    """A piece of work did not fit; `row_ids` and `num_tokens` are those of the micro-batch (none: the optimizer)."""

    def __init__(self, message: str, row_ids: tuple[str, ...] = (), num_tokens: int = 0, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.row_ids, self.num_tokens = row_ids, num_tokens


def is_out_of_memory(error: BaseException) -> bool:
    """True for the errors by which torch and its libraries say that an allocation failed."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).strip()
    return isinstance(error, RuntimeError) and (text in _ONEDNN or any(phrase in text for phrase in _PHRASES))


@contextmanager
def out_of_memory_as(what: str, row_ids: tuple[str, ...] = (), num_tokens: int = 0) -> Iterator[None]:
    """Turns a failed allocation inside into OutOfMemory; other errors pass."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        # Handlers must let go of this error before they try again: its context holds all that has been computed.
        raise OutOfMemory(f"{what} does not fit in memory ({reason})", row_ids, num_tokens) from None


def available_bytes(device: torch.device, *, root: Path = Path("/")) -> int | None:
    """Bytes that may still be taken on `device`; None where nothing tells. root: for tests, what to read as /."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    found = [*_meminfo(root), *_cgroups(root)]
    return min(found) if found else None


def _meminfo(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _cgroups(root: Path) -> Iterator[int]:
    """What is left in every control group that holds this process; file pages that can be dropped count as left."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names = ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file ")
        elif "memory" in controllers.split(","):
            names = ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
        else:
            continue
        folder = root / names[0] / path.strip("/")
        for level in (folder, *folder.parents):
            limit, usage = (_number(level / name) for name in names[1:3])
            if limit is not None and usage is not None:
                droppable = [int(x.split()[1]) for x in _lines(level / "memory.stat") if x.startswith(names[3])]
                yield max(0, limit - usage + sum(droppable))
            if level == root / names[0]:
                break


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    text = (_lines(path) or [""])[0].strip()
    return int(text) if text.isdigit() else None  # "max": no limit


class PeakMemory:
    """The most memory held since `start`, in bytes: resident memory on a CPU, allocated memory on a GPU.

    A CPU's high-water mark is set back through /proc/self/clear_refs; where that is not allowed, the peak is that of
    the whole process so far, which is never too small.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start_bytes = 0
        self._before = 0

    def start(self) -> None:
        """Forgets the peak so far (the process' own record keeps it)."""
        self._before = max(self._before, self.peak_bytes)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.start_bytes = torch.cuda.memory_allocated(self.device)
            return
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self.start_bytes = _status_bytes("VmRSS:") or 0

    @property
    def peak_bytes(self) -> int:
        """Since the last `start`."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return _status_bytes("VmHWM:") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    @property
    def overall_bytes(self) -> int:
        """Since this object was made and before, whatever `start` forgot."""
        return max(self._before, self.peak_bytes)


class KeptMemory:
    """Holds a run to what its rehearsal promised: freed memory that the process keeps for the next step is handed back
    once resident memory stands KEPT_SHARE times the rehearsal's own need above the rehearsed peak.

    peak_bytes, grown_bytes: of the rehearsal. On a CPU only; elsewhere torch's own allocator sees to it.
    """

    def __init__(self, device: torch.device, peak_bytes: int, grown_bytes: int) -> None:
        self.limit_bytes = peak_bytes + int(KEPT_SHARE * grown_bytes) if device.type == "cpu" else None

    def hold(self) -> bool:
        """Looks, between two micro-batches; True when memory was handed back."""
        if self.limit_bytes is None or (_status_bytes("VmRSS:") or 0) <= self.limit_bytes:
            return False
        return release_freed_memory()


def _status_bytes(field: str) -> int | None:
    found = [int(line.split()[1]) * 1024 for line in _lines(Path("/proc/self/status")) if line.startswith(field)]
    return found[0] if found else None


def held_bytes(
    model: nn.Module, parameters: Iterable[nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, int]:
    """Bytes of what stays from step to step: weights (buffers included), gradients, the optimizer's state."""
    parameters = list(parameters)
    states: list[Any] = [value for state in optimizer.state.values() for value in state.values()]
    return {
        "weights": sum(x.nbytes for x in (*model.parameters(), *model.buffers())),
        "gradients": sum(p.grad.nbytes for p in parameters if p.grad is not None),
        "optimizer state": sum(x.nbytes for x in states if isinstance(x, Tensor)),
    }

"""Which device a run computes on: asked for by train.device, said in one line, kept in the record, never replaced in
silence.

Trainers that fall back to a CPU without a word cost days (unsloth#6339). Here `cuda` is an error where it cannot be
had, and `auto` says why it took what it took.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from luthier.errors import ConfigError

_NOT_YET = "luthier does not train on a GPU yet"


@dataclass(frozen=True)
class Gpu:
    """What speaks of a GPU. driver: its version, "" = none loaded; built_for: CUDA version of this torch, "" = none."""

    driver: str = ""
    built_for: str = ""
    usable: bool = False
    name: str = ""
    capability: str = ""
    kernels: tuple[str, ...] = ()
    memory_bytes: int = 0

    @classmethod
    def here(cls) -> Gpu:
        """This machine's."""
        path = Path("/proc/driver/nvidia/version")
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        found = re.search(r"Kernel Module[^\d]*([\d.]+)", text)
        driver = found.group(1) if found else "unknown" if Path("/dev/nvidia0").exists() else ""
        built_for = str(torch.version.cuda or "")
        if not torch.cuda.is_available():
            return cls(driver, built_for)
        major, minor = torch.cuda.get_device_capability(0)
        return cls(
            driver,
            built_for,
            usable=True,
            name=torch.cuda.get_device_name(0),
            capability=f"sm_{major}{minor}",
            kernels=tuple(torch.cuda.get_arch_list()),
            memory_bytes=torch.cuda.get_device_properties(0).total_memory,
        )

    @property
    def missing(self) -> str:
        """Why torch cannot use one, or ''."""
        if self.usable:
            return ""
        if not self.driver:
            return "this machine has no GPU"
        if not self.built_for:
            return f"torch {torch.__version__} is built for the CPU"
        return f"torch for CUDA {self.built_for} cannot open the GPU (driver {self.driver})"


@dataclass(frozen=True)
class Device:
    """asked: train.device; taken: what torch is told; why: in words."""

    asked: str
    taken: str
    why: str

    def __str__(self) -> str:
        return f"{self.taken} (train.device: {self.asked}; {self.why})"


def choose_device(asked: str, gpu: Gpu | None = None) -> Device:
    """What train.device means here. gpu: default this machine's. Raises ConfigError for a cuda that cannot be had."""
    gpu = gpu or Gpu.here()
    if asked == "cuda":
        words = gpu.missing or f"{gpu.name} is there, but {_NOT_YET}"
        raise ConfigError(
            f"train.device: cuda cannot be had: {words}",
            hint="train.device: cpu, or auto; `luthier doctor` looks at GPU, driver and torch",
        )
    if asked == "cpu":
        return Device(asked, "cpu", "as asked")
    return Device(asked, "cpu", gpu.missing or f"{gpu.name} lies idle: {_NOT_YET}")


def devices_of(tensors: Iterable[torch.Tensor]) -> list[str]:
    """Where these tensors really are, for the record."""
    return sorted({str(tensor.device) for tensor in tensors})

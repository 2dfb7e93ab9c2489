"""This machine: probed when training starts, kept in the cache for `luthier plan`, and asked which dtype is fastest."""

from __future__ import annotations

import dataclasses
import json

import torch

from luthier.bases.resolve import default_cache_dir
from luthier.bases.shapes import Shapes
from luthier.config.load import Project
from luthier.models.probe import pick_dtype, probe_machine
from luthier.plan.machines import PROBE_FILE, usable_memory_bytes
from luthier.store.publish import write_atomic
from luthier.types import MachineProfile


def probe_and_keep(shapes: Shapes, num_threads: int | None) -> MachineProfile:
    """What this machine does at these shapes; written to the cache folder for the plan."""
    profile = probe_machine(shapes, num_threads or torch.get_num_threads(), usable_memory_bytes())
    folder = default_cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / PROBE_FILE, json.dumps(dataclasses.asdict(profile), indent=1) + "\n")
    return profile


def dtype_for(project: Project, profile: MachineProfile) -> str:
    """model.dtype, with auto decided by the probe."""
    dtype = project.spec.model.dtype
    return pick_dtype(profile) if dtype == "auto" else dtype


def describe(profile: MachineProfile, dtype: str) -> str:
    """One line for the console."""
    rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in profile.rates_gflops.items())
    fastest = pick_dtype(profile)
    advice = "" if fastest == dtype else f"; model.dtype: {fastest} would be faster, within its published bound"
    return f"this machine multiplies at {rates} GFLOP/s at this model's shapes; training in {dtype}{advice}"

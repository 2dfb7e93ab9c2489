"""This machine: probed when training starts, kept in the cache for `luthier plan`, and asked which dtype is fastest."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch

from luthier.bases.shapes import Shapes
from luthier.config.load import Project
from luthier.errors import ConfigError
from luthier.models.probe import probe_machine
from luthier.models.spec import NotOurs, read_config, spec_from_config
from luthier.plan.dtype import fastest_dtype
from luthier.plan.machines import probe_file, usable_memory_bytes
from luthier.store.publish import write_atomic
from luthier.types import MachineProfile


def probe(shapes: Shapes, num_threads: int | None) -> MachineProfile:
    """What this machine does at these shapes."""
    return probe_machine(shapes, num_threads or torch.get_num_threads(), usable_memory_bytes())


def keep(profile: MachineProfile, shapes: Shapes) -> None:
    """Writes a probe to the cache folder for the plan. Raises ConfigError where that cannot be written."""
    path = probe_file(shapes)
    try:
        write_atomic(path, json.dumps(dataclasses.asdict(profile), indent=1) + "\n")
    except (OSError, ConfigError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"{path}: the probe's figures cannot be kept for luthier plan ({why})",
            hint="LUTHIER_CACHE may name a folder that you own",
        ) from None


def probe_and_keep(shapes: Shapes, num_threads: int | None) -> MachineProfile:
    """Both: what `luthier plan --probe` asks for."""
    profile = probe(shapes, num_threads)
    keep(profile, shapes)
    return profile


def as_used_by(base: Path, profile: MachineProfile) -> MachineProfile:
    """The profile without int8 for a base that runs through transformers: int8 needs luthier's own decoder."""
    try:
        spec_from_config(read_config(base))
    except NotOurs:
        rates = {dtype: rate for dtype, rate in profile.rates_gflops.items() if dtype != "int8"}
        return dataclasses.replace(profile, rates_gflops=rates)
    return profile


def dtype_for(project: Project, profile: MachineProfile) -> str:
    """model.dtype, with auto decided by the probe."""
    dtype = project.spec.model.dtype
    return fastest_dtype(profile) if dtype == "auto" else dtype


def describe(profile: MachineProfile, dtype: str) -> str:
    """One line for the console."""
    rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in profile.rates_gflops.items())
    fastest = fastest_dtype(profile)
    advice = "" if fastest == dtype else f"; model.dtype: {fastest} would be faster, within its published bound"
    return f"this machine multiplies at {rates} GFLOP/s at this model's shapes; training in {dtype}{advice}"

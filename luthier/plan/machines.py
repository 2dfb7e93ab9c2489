"""The machines a plan is made for: this one (from the start-up probe, else a stated default) and the price catalogue.

The probe (models/probe.py) leaves `machine-*.json` in the cache folder, the fields of types.MachineProfile; reading it
needs no torch. Limits of a container count: a run cannot use more than its control group allows.
"""

from __future__ import annotations

import difflib
import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from luthier.bases.resolve import default_cache_dir
from luthier.bases.shapes import Shapes
from luthier.errors import ConfigError
from luthier.types import MachineProfile

GIB = 1 << 30
# Without a probe: a plain AVX2 core. Servers with AVX-512 reach two to four times as much; that is what probing is for.
DEFAULT_GFLOPS_PER_CORE = {"float32": 50.0, "bfloat16": 50.0, "int8": 100.0}
DEFAULT_BANDWIDTH_GB_S = 10.0
_CATALOGUE = Path(__file__).with_name("machines.yaml")
_KEYS = {"title", "device", "memory_gib", "peak_tflops", "bandwidth_gb_s", "usd_per_hour"}
_HERE = "here"  # in a machines.yaml beside the project file: this machine, of which only the price is not measured


def read_catalogue(beside: Path | None = None) -> dict[str, MachineProfile]:
    """name -> machine of the catalogue; entries of `beside`/machines.yaml are added and win. Raises ConfigError."""
    entries = _entries(_CATALOGUE) | _own_entries(beside)
    return {name: _profile(name, entry) for name, entry in entries.items() if name != _HERE}


def price_here(beside: Path) -> float | None:
    """USD an hour of this machine: the entry `here` of `beside`/machines.yaml; None where there is none (your own).

    Raises ConfigError for a price that is none.
    """
    price = _own_entries(beside).get(_HERE, {}).get("usd_per_hour")
    if price is not None and (isinstance(price, bool) or not isinstance(price, int | float) or not 0 <= price < 1e9):
        raise ConfigError(
            f"{beside / 'machines.yaml'}: machine here: the price is {price!r}", hint="here: {usd_per_hour: 0.4}"
        )
    return None if price is None else float(price)


def machine_named(name: str, catalogue: dict[str, MachineProfile]) -> MachineProfile:
    """The catalogue's machine called `name` (case does not matter). Raises ConfigError with the nearest name."""
    found = catalogue.get(name.lower())
    if found is None:
        near = difflib.get_close_matches(name.lower(), list(catalogue), n=1, cutoff=0.3)
        raise ConfigError(
            f"--machine {name}: not in the catalogue",
            hint=(f"did you mean {near[0]}? " if near else "") + f"there are {', '.join(catalogue)}",
        )
    return found


def probe_file(shapes: Shapes, cache_dir: Path | None = None) -> Path:
    """Where the probe's figures at the shapes of this base are kept."""
    return (cache_dir or default_cache_dir()) / f"machine-{shapes.hidden_size}x{shapes.ffn_size}.json"


def this_machine(shapes: Shapes, cache_dir: Path | None = None, num_threads: int | None = None) -> MachineProfile:
    """This machine as a probe at these shapes (and with num_threads, if given) left it, else its cores and memory at
    the stated default rates."""
    found = _read_probe(probe_file(shapes, cache_dir))
    if found is not None and num_threads in (None, found.num_threads):
        return found
    cores = num_threads or _num_cores()
    rates = {dtype: rate * cores for dtype, rate in DEFAULT_GFLOPS_PER_CORE.items()}
    return MachineProfile("this machine", "cpu", rates, DEFAULT_BANDWIDTH_GB_S, usable_memory_bytes(), cores)


def usable_memory_bytes() -> int:
    """Memory that a process here may use: the smaller of the machine's and its control group's."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        path = Path(name)
        text = path.read_text().strip() if path.is_file() else ""
        limits += [int(text)] if text.isdigit() else []
    return min(limits)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_probe(path: Path) -> MachineProfile | None:
    """None when there is no probe; one that cannot be read counts as none, the next training run writes it again."""
    known = {field.name for field in fields(MachineProfile)}
    try:
        value = json.loads(path.read_bytes())
        return _sane(MachineProfile(**{key: entry for key, entry in value.items() if key in known}))
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _sane(profile: MachineProfile) -> MachineProfile:
    """The profile itself. Raises ValueError (or TypeError) for figures that nothing could be divided by."""
    if profile.device not in ("cpu", "cuda"):
        raise ValueError(f"device is {profile.device!r}; cpu or cuda is expected")
    figures = {f"the rate of {dtype}": rate for dtype, rate in profile.rates_gflops.items()}
    figures |= {"the bandwidth": profile.bandwidth_gb_s, "the memory": profile.memory_bytes}
    for what, figure in figures.items():
        if not 0 < figure < float("inf"):
            raise ValueError(f"{what} is {figure}; a number above 0 is expected")
    if not profile.rates_gflops:
        raise ValueError("it has no rate")
    if profile.usd_per_hour is not None and not 0 <= profile.usd_per_hour < float("inf"):
        raise ValueError(f"the price is {profile.usd_per_hour}; 0 or more is expected")
    return profile


def _own_entries(beside: Path | None) -> dict[str, dict[str, Any]]:
    own = beside / "machines.yaml" if beside else None
    return _entries(own) if own and own.is_file() else {}


def _entries(path: Path) -> dict[str, dict[str, Any]]:
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})", hint="see the form in docs/plan.md") from None
    if not isinstance(value, dict) or not all(isinstance(entry, dict) for entry in value.values()):
        raise ConfigError(f"{path}: expected one entry a machine", hint="see the form in docs/plan.md")
    for name, entry in value.items():
        keys = {"usd_per_hour"} if name == _HERE else _KEYS
        strange, missing = set(entry) - keys, keys - set(entry)
        if strange or missing:
            what = f"unknown {', '.join(sorted(strange))}" if strange else f"no {', '.join(sorted(missing))}"
            raise ConfigError(f"{path}: machine {name}: {what}", hint=f"machine {name} has {', '.join(sorted(keys))}")
    return {str(name).lower(): entry for name, entry in value.items()}


def _profile(name: str, entry: dict[str, Any]) -> MachineProfile:
    try:
        profile = MachineProfile(
            name=f"{name} ({entry['title']})",
            device=entry["device"],
            rates_gflops={dtype: 1000.0 * rate for dtype, rate in entry["peak_tflops"].items()},
            bandwidth_gb_s=float(entry["bandwidth_gb_s"]),
            memory_bytes=int(entry["memory_gib"] * GIB),
            usd_per_hour=None if entry["usd_per_hour"] is None else float(entry["usd_per_hour"]),
        )
        return _sane(profile)
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ConfigError(f"machines.yaml: machine {name}: {error}", hint="see the form in docs/plan.md") from None

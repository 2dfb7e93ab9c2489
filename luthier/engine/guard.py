"""What must not change under a resumed run: every setting that moves a weight, the rows and their order, what is
trained, the libraries. A checkpoint keeps these fields; going on with another value of one is refused by its name.

What a run may be moved across, with a word of warning: threads and processor. Its result is then the same up to
rounding, not bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from luthier import __version__
from luthier.config.train import TrainSpec
from luthier.engine.inputs import StepPlan
from luthier.errors import TrainError
from luthier.store.publish import digest_json

# Settings that change what is written down or where it is computed, not what: a resumed run may change them.
FREE_SETTINGS = {"logging_steps", "save_steps", "save_total_limit", "trackers", "hang_timeout_s", "device"}
_LIBRARIES = ("torch", "numpy", "transformers", "safetensors")


def whole_guard(
    spec: TrainSpec, parameters: Mapping[str, nn.Parameter], plan: StepPlan, guard: Mapping[str, Any]
) -> dict[str, Any]:
    """The caller's `guard` (settings and digests, nested as they are) and the engine's own fields, one name each, as
    read back from JSON."""
    whole = {
        **_flat("train", spec.model_dump(mode="json", exclude=FREE_SETTINGS)),
        "trainable parameters": digest_json([(name, list(p.shape), str(p.dtype)) for name, p in parameters.items()]),
        "order of rows": plan.order_digest,
        "version of luthier": __version__,
        **{f"version of {name}": version(name) for name in _LIBRARIES},
        **{key: value for name, given in guard.items() for key, value in _flat(name, given).items()},
    }
    return json.loads(json.dumps(whole))  # tuples are lists


def _flat(name: str, value: Any) -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`: an error must name the one setting that changed."""
    if not isinstance(value, Mapping) or not value:
        return {name: value}
    return {key: inner for field, given in value.items() for key, inner in _flat(f"{name}.{field}", given).items()}


def check_guard(folder: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises TrainError naming the first field in which a run would go on other than it began."""
    absent = object()
    # Settings first: where one of them changed, the order of rows follows from it.
    for name in sorted(saved.keys() | now.keys(), key=lambda name: (" " in name, name)):
        if saved.get(name, absent) != now.get(name, absent):
            raise TrainError(
                f"cannot go on from {folder}: {name} was {_shown(saved, name)}, now it is {_shown(now, name)}",
                hint=f"put {name} back, or start over in another run folder",
            )


def _shown(fields: Mapping[str, Any], name: str) -> str:
    return repr(fields[name]) if name in fields else "not there"


def machine_facts(device: torch.device) -> dict[str, Any]:
    """What decides how sums are rounded, beside the libraries."""
    is_cpu = device.type == "cpu"
    processor = torch.backends.cpu.get_cpu_capability() if is_cpu else torch.cuda.get_device_name(device)
    return {"device": device.type, "processor": processor, "threads": torch.get_num_threads()}


def changed_facts(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """`threads 2 -> 4, ...`, or ''."""
    changed = [name for name in now if name in before and before[name] != now[name]]
    return ", ".join(f"{name} {before[name]} -> {now[name]}" for name in changed)

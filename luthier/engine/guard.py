"""What must not change under a resumed run: every setting that moves a weight, the rows and their order, what is
trained, the library. `checkpoint.py` holds a checkpoint's guard against it, field by field.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from luthier.config.train import TrainSpec
from luthier.engine.inputs import StepPlan
from luthier.store.publish import digest_json

# Settings that change what is written down, not the weights: a resumed run may change them.
FREE_SETTINGS = {"logging_steps", "save_steps", "save_total_limit", "trackers"}


def whole_guard(
    spec: TrainSpec, parameters: Mapping[str, nn.Parameter], plan: StepPlan, guard: Mapping[str, Any]
) -> dict[str, Any]:
    """The caller's `guard` (digests of data, base, ...) and the engine's own fields, as read back from JSON."""
    settings = spec.model_dump(mode="json", exclude=FREE_SETTINGS)
    whole = {
        **{f"train.{name}": value for name, value in settings.items()},
        "trainable parameters": digest_json([(name, list(p.shape)) for name, p in parameters.items()]),
        "order of rows": digest_json(plan.first_epoch()),
        "torch": torch.__version__,
        **guard,
    }
    return json.loads(json.dumps(whole))  # tuples are lists

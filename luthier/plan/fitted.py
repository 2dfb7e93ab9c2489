"""The constants of the plan that no formula gives, read from `fitted.yaml`, one set for each kind of device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

FILE = Path(__file__).with_name("fitted.yaml")


@dataclass(frozen=True)
class Fitted:
    """Meaning and units of every field: the comments of fitted.yaml."""

    process_mib: float
    lazy_mib: float
    head_copies: float
    capped_head_copies: float
    work_copies: float
    slack: float
    base: float
    adapter: float
    attention: float
    traffic: float
    layer_s: float
    start_s: float
    note: str


FITTED = {device: Fitted(**values) for device, values in yaml.safe_load(FILE.read_text(encoding="utf-8")).items()}

"""The global random generators (python, numpy, torch), taken down and put back exactly."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch


def remember() -> Callable[[], None]:
    """Takes down where every generator stands; calling the result puts them back there."""
    python, flat, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def put_back() -> None:
        random.setstate(python)
        np.random.set_state(flat)
        torch.set_rng_state(cpu)
        if devices:
            torch.cuda.set_rng_state_all(devices)

    return put_back

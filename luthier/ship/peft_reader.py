"""An adapter folder read by PEFT on plain transformers: the independent reader of what is published without a merge."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from luthier.ship.parity import LogitsFn


def peft_logits(base: Path, adapter: Path) -> LogitsFn:
    """Logits (A, V) at chosen positions of one document; those of virtual tokens are left out."""
    transformers, peft = (importlib.import_module(name) for name in ("transformers", "peft"))  # seconds of a start
    plain = transformers.AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, trust_remote_code=False, local_files_only=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = peft.PeftModel.from_pretrained(plain, str(adapter)).eval()

    def logits(ids: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        with torch.inference_mode():
            whole = model(input_ids=torch.tensor([list(ids)])).logits[0, -len(ids) :]
        return whole[list(positions)]

    return logits

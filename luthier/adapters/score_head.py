"""A score head beside an adapter, in PEFT's form: `modules_to_save: [score]` and task type SEQ_CLS.

So `PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(base, num_labels=N), folder)` gives the
same scores; a test holds both equal. (transformers scores the last token that is no padding: pad with another token
than the one that ends an answer.)
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from luthier.adapters.handle import AdaptedModel
from luthier.adapters.peft_files import CONFIG_FILE, WEIGHTS_FILE, read_tensors
from luthier.adapters.stored import load_adapter
from luthier.errors import ArtifactError

CLASSES_FILE = "classes.json"
_KEY = "base_model.model.score.weight"
_MARK = {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
_PLAIN = {"task_type": "CAUSAL_LM", "modules_to_save": None}


def save_score_head(model: Any, folder: Path, classes: Sequence[str] = ()) -> None:
    """Adds `model.score` to the adapter folder that was just written there. classes: names of the scores, by index."""
    weights = load_file(folder / WEIGHTS_FILE) | {_KEY: model.score.weight.detach().cpu().contiguous()}
    _write(folder, json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")) | _MARK, weights)
    if classes:
        (folder / CLASSES_FILE).write_text(json.dumps(list(classes), ensure_ascii=False) + "\n", encoding="utf-8")


def score_shape(folder: Path) -> tuple[int, int] | None:
    """(number of scores, hidden size) of the score head in an adapter folder; None where there is none. Raises
    ArtifactError for files that cannot be read."""
    score = read_tensors(folder).get(_KEY)
    return None if score is None else (score.shape[0], score.shape[1])


def load_score_head(model: Any, folder: Path) -> AdaptedModel:
    """Puts the adapter of `folder` and its score head onto the base `model`. ArtifactError: there is none."""
    weights = load_file(folder / WEIGHTS_FILE)
    if _KEY not in weights:
        raise ArtifactError(f"{folder / WEIGHTS_FILE}: no score head", hint="was it trained with loss.kind: reward?")
    score = weights.pop(_KEY)
    with tempfile.TemporaryDirectory() as plain:  # the adapter alone, as the reader of adapters knows it
        _write(Path(plain), json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")) | _PLAIN, weights)
        adapted = load_adapter(model, Path(plain))
    model.score = nn.Linear(score.shape[1], score.shape[0], bias=False)
    with torch.no_grad():
        model.score.weight.copy_(score)
    return adapted


def _write(folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})

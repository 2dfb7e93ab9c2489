"""The local model as evaluation sees it: sampler and scorer over one loaded model."""

from __future__ import annotations

from pathlib import Path

import torch

from luthier.adapters.stored import load_adapter
from luthier.chat.codec import ChatCodec
from luthier.config.load import Project
from luthier.kernels.allocator import keep_freed_memory
from luthier.models.load import load_model
from luthier.models.packed import PackedModel
from luthier.models.sampler import LocalSampler


def set_threads(project: Project) -> None:
    """Applies train.num_threads to this process, and lets it keep the memory that a step frees."""
    keep_freed_memory()
    if project.spec.train.num_threads is not None:
        torch.set_num_threads(project.spec.train.num_threads)


def sampler_of(model: PackedModel, codec: ChatCodec, name: str, *, batch_size: int) -> LocalSampler:
    """Sampler and scorer over a loaded model, speaking through `codec`."""
    return LocalSampler(
        model,
        encode=codec.prompt_ids,
        decode=codec.parse,
        stop_ids=codec.stop_ids,
        name=name,
        batch_size=batch_size,
        encode_answer=codec.encode_answer,
        encode_text=codec.text_ids,
    )


def load_sampler(
    folder: Path, codec: ChatCodec, name: str, *, batch_size: int, adapter: Path | None = None
) -> LocalSampler:
    """Loads a model folder in float32 (and, if given, a PEFT adapter folder onto it) behind a sampler."""
    model = load_model(folder)
    if adapter is not None:
        load_adapter(model, adapter)
    return sampler_of(model, codec, name, batch_size=batch_size)

"""Shared fixtures. The OMP policy must stand before torch is imported: two spinning threads on busy cores are 18x
slower."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from luthier.bases.resolve import resolve_base
from tests.tiny import make_tiny_base

torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """Folder of a 2-layer random Llama with a ChatML tokenizer."""
    return make_tiny_base(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="session")
def smollm2():
    """Folder of the embedded default base, converted once into the cache."""
    return resolve_base("smollm2-135m").folder

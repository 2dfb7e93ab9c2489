"""The bytes that a forward pass keeps, as autograd itself sees them, against the plan's formula; and LoRA's targets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from luthier.adapters.lora import apply_lora, find_targets
from luthier.bases.shapes import read_shapes
from luthier.config.adapter import AdapterSpec
from luthier.data.pack import make_batch
from luthier.engine.inputs import to_device
from luthier.errors import ConfigError
from luthier.models.int8 import load_frozen
from luthier.models.load import load_model
from luthier.plan.activations import MicroBatch, saved_bytes
from luthier.plan.linears import adapted_layers, count_parameters
from luthier.plan.trainable import count_trainable
from luthier.types import EncodedRow
from tests.tiny import make_tiny_base

LENGTHS = (100, 156, 64, 80)
ARCHS = ("llama", "mistral", "qwen2", "gemma2", "phi3")


@pytest.fixture(scope="module", params=ARCHS)
def base(request, tmp_path_factory):
    return make_tiny_base(tmp_path_factory.mktemp("plan") / request.param, request.param, num_hidden_layers=3)


def packed(num_vocabulary: int):
    rng = np.random.default_rng(0)
    rows = [
        EncodedRow(str(i), tuple(rng.integers(3, num_vocabulary, n).tolist()), tuple(t > 0.7 * n for t in range(n)))
        for i, n in enumerate(LENGTHS)
    ]
    return to_device(make_batch(rows), torch.device("cpu"))


def kept_bytes(model, batch) -> int:
    """Bytes of the distinct storages that the forward pass keeps, parameters left out."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def see(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept.setdefault(storage.data_ptr(), (storage.nbytes(), tensor))  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        hidden = model.hidden(batch)
    assert hidden.requires_grad
    return sum(num_bytes for num_bytes, _ in kept.values())


def check(base, adapter: AdapterSpec, dtype: str, tolerance: float) -> None:
    shapes = read_shapes(base)
    model = load_frozen(base, dtype=dtype, sample=packed(shapes.vocab_size))
    apply_lora(model, adapter, seed=0)
    model.train()
    batch = packed(shapes.vocab_size)
    micro = MicroBatch(sum(LENGTHS), batch.num_trained, sum(n * n for n in LENGTHS) / sum(LENGTHS))
    assert saved_bytes(shapes, adapter, dtype, micro) == pytest.approx(kept_bytes(model, batch), rel=tolerance)


@pytest.mark.known_bug("MM")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_all_linear_is_exact(base, dtype):
    check(base, AdapterSpec(lora_r=4), dtype, tolerance=0.002)


@pytest.mark.parametrize("leaf", ["o_proj", "down_proj"])
def test_fewer_targets(base, leaf):
    check(base, AdapterSpec(lora_r=8, lora_target_modules=(leaf,)), "float32", tolerance=0.002)


def test_top_layer_only_keeps_little(base):
    shapes, micro = read_shapes(base), MicroBatch(400, 120, 110.0)
    top = AdapterSpec(lora_r=4, lora_target_modules=("2.mlp.down_proj",))
    assert saved_bytes(shapes, top, "float32", micro) < 0.2 * saved_bytes(
        shapes, AdapterSpec(lora_r=4), "float32", micro
    )


def test_dropout_keeps_its_mask(base):
    check(base, AdapterSpec(lora_r=4, lora_dropout=0.1), "float32", tolerance=0.002)


@pytest.mark.parametrize("targets", ["all-linear", ("o_proj",), ("1.mlp.down_proj", "o_proj")])
def test_targets_and_counts_are_the_engines(base, targets):
    adapter, shapes = AdapterSpec(lora_r=4, lora_target_modules=targets), read_shapes(base)
    model = load_model(base)
    expected = set(find_targets(model, adapter))
    planned = {f"model.layers.{i}.{path}" for i, paths in enumerate(adapted_layers(shapes, adapter)) for path in paths}
    assert planned == expected
    assert count_parameters(shapes) == shapes.num_parameters == model.num_parameters
    assert count_trainable(shapes, adapter) == apply_lora(model, adapter, seed=0).num_trainable


@pytest.mark.parametrize("targets", [("q_porj",), ("lm_head",)])
def test_bad_targets_are_refused_as_the_engine_refuses_them(base, targets):
    with pytest.raises(ConfigError) as planned:
        count_trainable(read_shapes(base), AdapterSpec(lora_target_modules=targets, lora_r=4))
    with pytest.raises(ConfigError) as trained:
        find_targets(load_model(base), AdapterSpec(lora_target_modules=targets, lora_r=4))
    assert str(planned.value) == str(trained.value)


def test_rank_above_the_width(base):
    with pytest.raises(ConfigError, match="above the width"):
        count_trainable(read_shapes(base), AdapterSpec(lora_r=4096))

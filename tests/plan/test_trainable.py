"""Every method's numbers and kept bytes as the plan counts them from shapes, against the model itself."""

from __future__ import annotations

import pytest
import torch

from luthier.adapters.registry import Given, apply_method
from luthier.bases.shapes import read_shapes
from luthier.config.adapter import AdapterSpec
from luthier.config.adapter_methods import FACTS
from luthier.models.int8 import load_frozen
from luthier.models.load import read_weight
from luthier.plan.activations import MicroBatch, saved_bytes
from luthier.plan.trainable import trainable
from tests.plan.test_activations import LENGTHS, kept_bytes, packed
from tests.tiny import make_tiny_base

ARCHS = ("llama", "qwen2", "gemma2", "phi3")
SETTINGS = {"layers": {"top_layers": 2}, "vera": {"lora_r": 48}, "longlora": {"longlora_group": 512}}
PARTS = [
    {"top_layers": 1},
    {"rank_pattern": {"down_proj": 7, "o_proj": 2}},
    {"modules_to_save": ("embed_tokens",)},
    {"modules_to_save": ("lm_head", "norms")},
]


@pytest.fixture(scope="module", params=ARCHS)
def base(request, tmp_path_factory):
    return make_tiny_base(tmp_path_factory.mktemp("plan") / request.param, request.param, num_hidden_layers=3)


def adapted(base, spec: AdapterSpec):
    dtype = "nf4" if spec.facts.needs_nf4 else "float32"
    batch = packed(read_shapes(base).vocab_size)
    model = load_frozen(base, dtype=dtype, sample=batch)
    given = Given(lambda: model.hidden(batch), lambda name: read_weight(base, name), list)
    return apply_method(model, spec, seed=0, given=given), dtype, batch


def check(base, spec: AdapterSpec) -> None:
    handle, dtype, batch = adapted(base, spec)
    handle.model.train()
    shapes = read_shapes(base)
    assert trainable(shapes, spec).count == handle.num_trainable
    micro = MicroBatch(sum(LENGTHS), batch.num_trained, sum(n * n for n in LENGTHS) / sum(LENGTHS))
    expected = saved_bytes(shapes, spec, dtype, micro)
    hidden = handle.model.hidden(batch)
    kept = kept_bytes(handle.model, batch) if hidden.requires_grad else 0
    assert expected == pytest.approx(kept, rel=0.01)


@pytest.mark.parametrize("method", sorted(FACTS))
def test_counts_and_kept_bytes_of_every_method(base, method, tmp_path):
    if method == "longlora" and read_shapes(base).model_type == "gemma2":
        # Of two key/value heads half is one, which torch multiplies without the copies that the plan counts.
        heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
        base = make_tiny_base(tmp_path / "four", "gemma2", num_hidden_layers=3, **heads)
    check(base, AdapterSpec(method=method, **{"lora_r": 4, **SETTINGS.get(method, {})}))


@pytest.mark.parametrize("changes", PARTS, ids=str)
def test_counts_and_kept_bytes_of_parts(base, changes):
    check(base, AdapterSpec(lora_r=4, **changes))


def test_the_head_alone_keeps_nothing_of_the_body(base):
    handle, _, batch = adapted(base, AdapterSpec(method="head"))
    assert not handle.model.hidden(batch).requires_grad
    assert all(name.startswith("lm_head") for name in handle.trained())
    torch.testing.assert_close(handle.model.head(handle.model.hidden(batch)).shape[1], read_shapes(base).vocab_size)

"""Shapes against transformers' own models."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from luthier.bases.shapes import read_shapes, tensor_shapes
from luthier.errors import BaseModelError
from tests.tiny import ARCHS, make_tiny_base

torch.set_num_threads(1)


@pytest.mark.parametrize("arch", list(ARCHS))
def test_shapes_equal_transformers(tmp_path, arch):
    folder = make_tiny_base(tmp_path / "base", arch)
    shapes, config = read_shapes(folder), AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert shapes.num_parameters == sum(p.numel() for p in model.parameters())
    assert shapes.model_type == config.model_type and shapes.architecture == type(model).__name__
    assert (shapes.num_layers, shapes.hidden_size) == (config.num_hidden_layers, config.hidden_size)
    assert (shapes.num_heads, shapes.num_kv_heads) == (config.num_attention_heads, config.num_key_value_heads)
    assert (shapes.ffn_size, shapes.vocab_size) == (config.intermediate_size, config.vocab_size)
    assert shapes.tied == config.tie_word_embeddings
    assert shapes.head_dim == model.model.layers[0].self_attn.head_dim
    assert shapes.rope_theta == config.rope_parameters["rope_theta"]
    names = {name for name, _ in model.named_parameters()}
    assert names == set(tensor_shapes(folder))


def test_config_without_a_field_is_named(tmp_path):
    folder = make_tiny_base(tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    del config["num_hidden_layers"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BaseModelError, match="num_hidden_layers is None"):
        read_shapes(folder)


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"\xff" * 64, b"\x10" + b"\x00" * 7 + b"{"])
def test_torn_weights_are_named(tmp_path, content):
    folder = make_tiny_base(tmp_path / "base")
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(BaseModelError, match="torn or no safetensors file"):
        read_shapes(folder)

"""A base with fewer layers is the same model without the others, whatever reads it."""

import json
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from luthier.bases.cut_layers import cut_layers, evenly_spaced
from luthier.bases.folder import check_folder
from luthier.errors import BaseModelError
from luthier.models.load import load_model
from luthier.store.safetensors_file import header_problem
from tests.tiny import make_tiny_base

torch.set_num_threads(1)


def test_first_and_last_stay_and_the_rest_is_spread():
    assert evenly_spaced(30, 15)[:3] == [0, 2, 4] and evenly_spaced(30, 15)[-2:] == [27, 29]
    for num_layers in range(3, 40):
        for keep in range(2, num_layers):
            kept = evenly_spaced(num_layers, keep)
            steps = {b - a for a, b in pairwise(kept)}
            assert (len(kept), kept[0], kept[-1]) == (keep, 0, num_layers - 1) and max(steps) - min(steps) <= 1
            assert min(steps) >= 1


@pytest.mark.parametrize(("arch", "shards"), [("llama", False), ("qwen2", True), ("gemma2", False)])
def test_a_cut_base_is_transformers_own_model_with_those_layers_alone(tmp_path, arch, shards):
    source = make_tiny_base(tmp_path / "base", arch, num_hidden_layers=5)
    whole = AutoModelForCausalLM.from_pretrained(source).eval()
    if shards:
        for path in source.glob("*.safetensors"):
            path.unlink()
        whole.save_pretrained(source, max_shard_size="100KB")
        assert len(list(source.glob("*.safetensors"))) > 1
    out = tmp_path / "cut"
    out.mkdir()
    facts = cut_layers(source, out, 3)
    check_folder(out)
    assert facts["layers"] == [0, 2, 4] and not header_problem(out / "model.safetensors")
    cut = AutoModelForCausalLM.from_pretrained(out).eval()
    assert facts["num_parameters"] == sum(p.numel() for p in cut.parameters())
    types = json.loads((source / "config.json").read_text()).get("layer_types")
    if types:
        assert cut.config.layer_types == [types[0], types[2], types[4]]
    whole.model.layers = torch.nn.ModuleList(whole.model.layers[index] for index in facts["layers"])
    for index, layer in enumerate(whole.model.layers):
        layer.self_attn.layer_idx = index
    whole.config.num_hidden_layers = 3
    if types:
        whole.config.layer_types = cut.config.layer_types
    ids = torch.tensor([[3, 14, 15, 92, 65, 35]])
    with torch.no_grad():
        torch.testing.assert_close(cut(ids).logits, whole(ids).logits, rtol=0, atol=0)
    load_model(out)


def test_kept_weights_are_the_sources_to_the_last_bit_in_their_own_type(tmp_path):
    source = make_tiny_base(tmp_path / "base", num_hidden_layers=4)
    AutoModelForCausalLM.from_pretrained(source).to(torch.bfloat16).save_pretrained(source)
    out = tmp_path / "cut"
    out.mkdir()
    cut_layers(source, out, 2)
    before, after = load_file(source / "model.safetensors"), load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name.replace("layers.1.", "layers.3.")]), name
    assert len(after) == len([name for name in before if "layers.1." not in name and "layers.2." not in name])


@pytest.mark.parametrize("keep", [1, 2, 9])
def test_as_many_layers_as_there_are_or_none_is_refused(tmp_path, keep):
    source = make_tiny_base(tmp_path / "base")
    with pytest.raises(BaseModelError, match=f"has 2 layers: {keep} of them cannot be kept"):
        cut_layers(source, tmp_path, keep)

"""merge == PEFT's merge_and_unload, and the failures it must name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from luthier.errors import ArtifactError
from luthier.models.load import load_model
from luthier.ship.merge import merge
from tests.ship.bases import ARCHS, load, sharp_base


def make_adapter(base: Path, folder: Path, **settings) -> Path:
    """A PEFT LoRA with random B, saved by PEFT."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | settings
    torch.manual_seed(2)
    model = get_peft_model(load(base), LoraConfig(task_type="CAUSAL_LM", **settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return sharp_base(tmp_path_factory.mktemp("merge") / "base")


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    return make_adapter(base, tmp_path_factory.mktemp("merge") / "adapter")


@pytest.mark.known_bug("MG2")
@pytest.mark.parametrize("arch", ARCHS)
def test_merge_equals_peft(arch, tmp_path):
    base = sharp_base(tmp_path / "base", arch)
    adapter = make_adapter(base, tmp_path / "adapter")
    report = merge(base, adapter, tmp_path / "merged")
    unmerged = PeftModel.from_pretrained(load(base), adapter).eval()
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        trained = unmerged(ids, use_cache=False).logits
        ours = load(tmp_path / "merged")
        torch.testing.assert_close(ours(ids, use_cache=False).logits, trained, rtol=1e-4, atol=1e-4)
    theirs = unmerged.merge_and_unload().state_dict()
    for name, weight in ours.state_dict().items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-6, atol=1e-6, msg=name)
    assert report.num_modules == (7 if arch != "phi3" else 4) * 2
    assert report.changed_share > 0.99 and report.max_delta > 0 and report.lost_share < 1e-4


@pytest.mark.known_bug("MG2")
def test_scales_and_patterns_are_peft_s(base, tmp_path):
    settings = {
        "use_rslora": True,
        "rank_pattern": {"q_proj": 2, r".*layers\.1\.mlp\.up_proj": 8},
        "alpha_pattern": {"down_proj": 32},
    }
    adapter = make_adapter(base, tmp_path / "adapter", **settings)
    merge(base, adapter, tmp_path / "merged")
    theirs = PeftModel.from_pretrained(load(base), adapter).merge_and_unload().state_dict()
    for name, weight in load(tmp_path / "merged").state_dict().items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.known_bug("TE1")
def test_a_head_that_the_config_calls_tied_but_is_not_stays_its_own(base, tmp_path):
    """Weights hold another head than the embedding, config.json says tied: the merged head is the base's head, in plain
    transformers and in luthier, and not the embedding.
    """
    apart = shutil.copytree(base, tmp_path / "apart")
    weights = load_file(apart / "model.safetensors")
    assert json.loads((apart / "config.json").read_text())["tie_word_embeddings"] and "lm_head.weight" not in weights
    head = torch.randn_like(weights["model.embed_tokens.weight"])
    save_file(weights | {"lm_head.weight": head}, apart / "model.safetensors", metadata={"format": "pt"})
    merge(apart, make_adapter(apart, tmp_path / "adapter"), tmp_path / "merged")
    for model in (load(tmp_path / "merged"), load_model(tmp_path / "merged")):
        assert torch.equal(model.lm_head.weight, head)
        assert torch.equal(model.model.embed_tokens.weight, weights["model.embed_tokens.weight"])


def test_folder_is_complete_and_names_every_stop(base, adapter, tmp_path):
    merge(base, adapter, tmp_path / "merged", stop_ids=frozenset({2, 0}))
    kept = {path.name for path in (tmp_path / "merged").iterdir()}
    assert kept == {path.name for path in base.iterdir()}
    assert json.loads((tmp_path / "merged/generation_config.json").read_text())["eos_token_id"] == [0, 2]
    assert (tmp_path / "merged/chat_template.jinja").read_bytes() == (base / "chat_template.jinja").read_bytes()
    assert load(tmp_path / "merged").generation_config.eos_token_id == [0, 2]


def test_sharded_bf16_base_keeps_shards_and_dtype(base, adapter, tmp_path):
    sharded = tmp_path / "sharded"
    shutil.copytree(base, sharded)
    model = load(base).to(torch.bfloat16)
    (sharded / "model.safetensors").unlink()
    model.save_pretrained(sharded, max_shard_size="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    report = merge(sharded, adapter, tmp_path / "merged")
    assert report.dtype == "bfloat16" and 0 < report.lost_share < 0.2
    merge(sharded, adapter, tmp_path / "wide", dtype="float32")
    narrow, wide = load(tmp_path / "merged").state_dict(), load(tmp_path / "wide").state_dict()
    for name, weight in wide.items():
        torch.testing.assert_close(narrow[name], weight.to(torch.bfloat16).float(), rtol=0, atol=0, msg=name)
    assert json.loads((tmp_path / "wide/config.json").read_text())["dtype"] == "float32"


def _edit_weights(adapter: Path, folder: Path, change) -> Path:
    shutil.copytree(adapter, folder)
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file(change(weights), folder / "adapter_model.safetensors")
    return folder


def _edit_config(adapter: Path, folder: Path, **changes) -> Path:
    shutil.copytree(adapter, folder)
    config = json.loads((adapter / "adapter_config.json").read_text()) | changes
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def _zero_b(weights):
    return {name: w * 0 if "lora_B" in name else w for name, w in weights.items()}


def _tiny_b(weights):
    return {name: w * 1e-12 if "lora_B" in name else w for name, w in weights.items()}


def _renamed(weights):
    return {name.replace("layers.1", "layers.7"): w for name, w in weights.items()}


def _half(weights):
    return {name: w for name, w in weights.items() if "q_proj.lora_B" not in name}


def _on_head(weights):
    extra = {
        "base_model.model.lm_head.lora_A.weight": torch.ones(4, 64),
        "base_model.model.lm_head.lora_B.weight": torch.ones(350, 4),
    }
    return weights | extra


def _with_dora(weights):
    return weights | {"base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector.weight": torch.ones(128)}


@pytest.mark.known_bug("TE1", "MG2")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_zero_b, "every delta is zero"),
        (_tiny_b, "rounds every delta"),
        (_renamed, "not in the base"),
        (_half, "2 keys missing"),
        (_on_head, "tied"),
        (_with_dora, "1 unexpected"),
        (lambda weights: {}, "no adapter tensors"),
    ],
)
def test_broken_weights_are_named(base, adapter, tmp_path, change, words):
    broken = _edit_weights(adapter, tmp_path / "broken", change)
    with pytest.raises(ArtifactError, match=words):
        merge(base, broken, tmp_path / "merged")


@pytest.mark.known_bug("TE1")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_dora": True}, "lora_magnitude_vector"),
        ({"modules_to_save": ["lm_head"]}, "1 keys missing .*lm_head"),
        ({"bias": "all"}, "bias"),
        ({"peft_type": "LOHA"}, "peft_type"),
        ({"r": 5}, "rank 4"),
    ],
)
def test_other_adapter_kinds_are_refused_by_name(base, adapter, tmp_path, changes, words):
    with pytest.raises(ArtifactError, match=words):
        merge(base, _edit_config(adapter, tmp_path / "other", **changes), tmp_path / "merged")


def test_diverged_adapter_is_refused(base, adapter, tmp_path):
    broken = _edit_weights(adapter, tmp_path / "nan", lambda weights: {n: w * float("nan") for n, w in weights.items()})
    with pytest.raises(ArtifactError, match="NaN"):
        merge(base, broken, tmp_path / "merged")

"""Adapter folders: PEFT loads ours, we load PEFT's, and nothing is loaded halfway."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.adapters.lora import LowRankModel, apply_lora
from luthier.adapters.peft_files import save_adapter
from luthier.adapters.stored import load_adapter, read_adapter
from luthier.config.adapter import AdapterSpec
from luthier.errors import ArtifactError
from tests.engine.small import VOCAB, SmallModel, small_model

IDS = torch.arange(20)[None] % VOCAB


def _base() -> SmallModel:
    """The base of `small_model`, untouched."""
    torch.manual_seed(0)
    return SmallModel(small_model().config)


def _moved(spec: AdapterSpec) -> tuple[LowRankModel, torch.Tensor]:
    model = _base()
    adapted = apply_lora(model, spec, seed=3)
    torch.manual_seed(5)
    for layer in adapted.layers.values():
        torch.nn.init.normal_(layer.lora_B, std=0.05)
    model.eval()
    return adapted, model(IDS).logits.detach()


@pytest.mark.known_bug("LR1")
@pytest.mark.parametrize(
    "spec",
    [
        AdapterSpec(lora_r=4),
        AdapterSpec(lora_r=4, use_rslora=True, lora_alpha=3.5, lora_dropout=0.2),
        AdapterSpec(lora_r=2, lora_target_modules=("q_proj", "down_proj")),
    ],
    ids=["all-linear", "rslora", "chosen"],
)
def test_peft_loads_our_folder_and_we_load_it_back(tmp_path, spec):
    """Equal logits in plain PEFT; and in a fresh base of ours, bit for bit."""
    adapted, logits = _moved(spec)
    save_adapter(adapted, tmp_path, "tiny")
    in_peft = peft.PeftModel.from_pretrained(_base(), str(tmp_path)).eval()
    torch.testing.assert_close(in_peft(IDS).logits, logits, rtol=1e-5, atol=1e-5)
    again = _base()
    loaded = load_adapter(again, tmp_path)
    assert torch.equal(again.eval()(IDS).logits, logits)
    assert (loaded.spec.lora_r, loaded.spec.lora_alpha, loaded.spec.use_rslora) == (
        spec.lora_r, spec.lora_alpha, spec.use_rslora,
    )  # fmt: skip
    assert set(read_adapter(tmp_path, {}).updates) == set(loaded.layers)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], r".*\.0\.self_attn\.[qk]_proj"])
def test_we_load_a_folder_that_peft_saved(tmp_path, targets):
    """Equal logits, whichever way PEFT was told its targets; our keys are PEFT's keys."""
    config = peft.LoraConfig(
        r=4, lora_alpha=10, target_modules=targets, init_lora_weights=False, use_rslora=True, task_type="CAUSAL_LM"
    )
    in_peft = peft.get_peft_model(_base(), config).eval()
    logits = in_peft(IDS).logits.detach()
    in_peft.save_pretrained(tmp_path)
    model = _base()
    adapted = load_adapter(model, tmp_path)
    torch.testing.assert_close(model.eval()(IDS).logits, logits, rtol=1e-5, atol=1e-5)
    save_adapter(adapted, tmp_path / "ours", "tiny")
    ours, theirs = (load_file(f / "adapter_model.safetensors") for f in (tmp_path / "ours", tmp_path))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def _saved(tmp_path):
    spec = AdapterSpec(lora_r=4)
    adapted, _ = _moved(spec)
    save_adapter(adapted, tmp_path, "tiny")
    return load_file(tmp_path / "adapter_model.safetensors")


def test_missing_unexpected_and_misshapen_tensors_are_errors(tmp_path):
    """strict, always: a loader that shrugs serves the base (B14)."""
    tensors = _saved(tmp_path)
    key = next(iter(tensors))
    path = tmp_path / "adapter_model.safetensors"
    save_file({k: t for k, t in tensors.items() if k != key}, path)
    with pytest.raises(ArtifactError, match="1 keys missing"):
        load_adapter(_base(), tmp_path)
    save_file(tensors | {"base_model.model.extra.lora_A.weight": torch.zeros(1)}, path)
    with pytest.raises(ArtifactError, match=r"extra\.lora_B"):
        load_adapter(_base(), tmp_path)
    save_file(tensors | {key: tensors[key][:, :-1].contiguous()}, path)
    with pytest.raises(ArtifactError, match="this model needs"):
        load_adapter(_base(), tmp_path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ArtifactError, match="unreadable"):
        load_adapter(_base(), tmp_path)


@pytest.mark.known_bug("TE1")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "lora_magnitude_vector"),
        ({"bias": "all"}, "uses bias"),
        ({"use_qalora": True}, "uses use_qalora"),
        ({"modules_to_save": ["lm_head"]}, "1 keys missing .'lm_head"),
        ({"rank_pattern": {"q_proj": 3}}, "says 3"),
        ({"peft_type": "LOHA"}, "peft_type is LOHA"),
        ({"r": 0}, "says 0"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"layers_to_transform": [0]}, "layers_to_transform of adapter_config.json leaves out"),
        ({"layers_to_transform": 1}, "layers_to_transform"),
        ({"target_modules": ".*q_proj"}, "target_modules of adapter_config.json leaves out"),
    ],
)
def test_features_we_lack_are_refused_by_name(tmp_path, change, message):
    """Never load an adapter as something it is not (B15)."""
    _saved(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ArtifactError, match=message):
        load_adapter(_base(), tmp_path)

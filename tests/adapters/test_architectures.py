"""Adapters on our decoder, one row per architecture: the folder gives plain transformers + PEFT the same logits."""

import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from luthier.adapters.lora import apply_lora
from luthier.adapters.peft_files import save_adapter
from luthier.adapters.stored import load_adapter
from luthier.config.adapter import AdapterSpec
from luthier.losses.sft import sft_loss_sum
from luthier.models.load import load_model
from luthier.types import Batch
from tests.tiny import ARCHS, make_tiny_base

IDS = np.arange(24) * 7 % 200


def _batch() -> Batch:
    return Batch(IDS, np.arange(24), np.array([0, 24]), np.arange(24), IDS, row_ids=("one",))


def _logits(model) -> torch.Tensor:
    return model.head(model.hidden(_batch()))


@pytest.mark.parametrize("arch", sorted(ARCHS))
def test_adapter_folder_in_peft(tmp_path, arch):
    """Trained-looking adapter on every linear layer: equal logits there and back; off, the base bit for bit."""
    base = make_tiny_base(tmp_path / "base", arch)
    spec = AdapterSpec(lora_r=4, lora_alpha=8)
    model = load_model(base)
    with torch.no_grad():
        untouched = _logits(model)
    adapted = apply_lora(model, spec, seed=0)
    torch.manual_seed(1)
    for layer in adapted.layers.values():
        torch.nn.init.normal_(layer.lora_B, std=0.05)
    with torch.no_grad():
        tuned = _logits(model)
        with adapted.disable():
            assert torch.equal(_logits(model), untouched)
    save_adapter(adapted, tmp_path / "adapter", str(base))
    in_peft = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(tmp_path / "adapter")
    ).eval()
    with torch.no_grad():
        torch.testing.assert_close(in_peft(torch.tensor(IDS)[None]).logits[0], tuned, rtol=1e-4, atol=1e-4)
        again = load_model(base)
        load_adapter(again, tmp_path / "adapter")
        assert torch.equal(_logits(again), tuned)
    assert not torch.allclose(tuned, untouched, atol=1e-3)


@pytest.mark.known_bug("GC1")
@pytest.mark.parametrize("arch", sorted(ARCHS))
def test_gradients_equal_peft(tmp_path, arch):
    """dA and dB of every layer equal PEFT's on the same rows."""
    base = make_tiny_base(tmp_path / "base", arch)
    spec = AdapterSpec(lora_r=4, lora_alpha=8)
    model = load_model(base)
    adapted = apply_lora(model, spec, seed=0)
    torch.manual_seed(1)
    for layer in adapted.layers.values():
        torch.nn.init.normal_(layer.lora_B, std=0.05)
    save_adapter(adapted, tmp_path / "adapter", str(base))
    targets = torch.tensor(np.roll(IDS, -1))
    sft_loss_sum(_logits(model), targets).backward()
    in_peft = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(tmp_path / "adapter"), is_trainable=True
    ).eval()
    sft_loss_sum(in_peft(torch.tensor(IDS)[None]).logits[0], targets).backward()
    theirs = {name.replace(".default", ""): p.grad for name, p in in_peft.named_parameters() if p.requires_grad}
    for name, layer in adapted.layers.items():
        for matrix in ("lora_A", "lora_B"):
            expected = theirs[f"base_model.model.{name}.{matrix}.weight"]
            torch.testing.assert_close(
                getattr(layer, matrix).grad, expected, rtol=2e-3, atol=1e-4, msg=f"{name} {matrix}"
            )

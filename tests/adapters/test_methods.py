"""One matrix over all methods: what each must be whatever it computes; and what only it does."""

from __future__ import annotations

import warnings

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from luthier.adapters.peft_files import CONFIG_FILE, WEIGHTS_FILE, save_adapter
from luthier.adapters.stored import load_adapter
from luthier.config.adapter_methods import FACTS
from luthier.errors import ArtifactError, TrainError
from luthier.models.int8 import load_frozen
from luthier.models.load import load_model
from luthier.ship.merge import merge
from tests.adapters.methods import IDS, METHODS, adapted, batch_of, logits, move, spec_of
from tests.tiny import make_tiny_base

KEEPS_BASE = [method for method in METHODS if FACTS[method].keeps_base]
IN_PEFT = [method for method in METHODS if FACTS[method].peft_type and not FACTS[method].needs_nf4]
NF4 = [method for method in METHODS if FACTS[method].needs_nf4]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_tiny_base(tmp_path_factory.mktemp("methods") / "base", num_hidden_layers=2)


@pytest.mark.parametrize("method", METHODS)
def test_starts_as_it_says(base, method):
    """As the base (or the base in 4 bits) up to rounding; LoftQ nearer to the base than its 4 bits alone."""
    handle, plain = adapted(base, spec_of(method, lora_r=16)), logits(load_model(base))
    if method == "p_tuning":  # random rows, as its paper: nothing to be equal to
        assert logits(handle.model).isfinite().all() and not torch.allclose(logits(handle.model), plain, atol=1e-3)
        return
    if FACTS[method].kind == "prompt":  # the base behind the drawn tokens
        drawn = torch.randint(handle.model.spec.vocab_size, (5,), generator=torch.Generator().manual_seed(0)).numpy()
        plain = logits(load_model(base), np.concatenate([drawn, IDS]))[5:]
    if method == "loftq":
        with handle.disable():
            off = (logits(handle.model) - plain).norm()
        assert (logits(handle.model) - plain).norm() < 0.8 * off
        return
    if FACTS[method].needs_nf4:
        plain = logits(load_frozen(base, dtype="nf4", sample=batch_of()))
    torch.testing.assert_close(logits(handle.model), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.known_bug("GC1", "IN2", "DO2")
@pytest.mark.parametrize("method", METHODS)
def test_only_what_it_trains_moves_and_all_of_it(base, method):
    handle = adapted(base, spec_of(method))
    trained = set(handle.trained())
    before = {name: p.detach().clone() for name, p in handle.model.named_parameters()}
    move(handle)
    moved = {name for name, p in handle.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == trained


@pytest.mark.parametrize("method", METHODS)
def test_saved_and_loaded_it_computes_the_same(base, tmp_path, method):
    """On a fresh base; and the folder is no larger than what is trained (a start that is frozen comes on top)."""
    handle = adapted(base, spec_of(method))
    move(handle)
    handle.model.eval()
    tuned = logits(handle.model)
    save_adapter(handle, tmp_path, str(base))
    model = load_model(base)
    load_adapter(model, tmp_path)
    torch.testing.assert_close(logits(model.eval()), tuned, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(tuned, logits(load_model(base)), atol=1e-3)
    stored = sum(x.numel() for x in load_file(tmp_path / WEIGHTS_FILE).values())
    frozen = {"pissa": handle.num_trainable, "olora": handle.num_trainable}.get(method, 0)
    if method == "longlora":  # a tied embedding, which PEFT wants under both names
        frozen = handle.model.model.embed_tokens.weight.numel()
    if method == "lora_fa":
        frozen = sum(layer.lora_A.numel() for layer in handle.layers.values())
    assert stored <= 1.1 * (handle.num_trainable + frozen)


@pytest.mark.parametrize("method", KEEPS_BASE)
def test_switched_off_it_is_the_base_bit_for_bit(base, method):
    """Base here: as it is loaded for this method. Then the method is back."""
    spec = spec_of(method, lora_dropout=0.3)
    expected = logits(load_frozen(base, dtype="nf4" if spec.facts.needs_nf4 else "float32", sample=batch_of()))
    handle = adapted(base, spec)
    move(handle)
    handle.model.eval()
    tuned = logits(handle.model)
    with handle.disable():
        assert torch.equal(logits(handle.model), expected)
    assert torch.equal(logits(handle.model), tuned) and not torch.equal(tuned, expected)


@pytest.mark.parametrize("method", [method for method in METHODS if method not in KEEPS_BASE])
def test_what_keeps_no_base_says_so(base, method):
    with pytest.raises(TrainError, match="cannot be switched back") as error, adapted(base, spec_of(method)).disable():
        pass
    assert "load the base again" in error.value.hint


@pytest.mark.known_bug("MG1", "TE1")
@pytest.mark.parametrize("method", [method for method in METHODS if FACTS[method].mergeable])
@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_merged_equals_unmerged(tmp_path, arch, method):
    """The merged folder in plain transformers; a tied and an untied head, without and with biases."""
    base = make_tiny_base(tmp_path / "base", arch)
    handle = adapted(base, spec_of(method))
    move(handle)
    handle.model.eval()
    save_adapter(handle, tmp_path / "adapter", str(base))
    merge(base, tmp_path / "adapter", tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.no_grad():
        theirs = plain(torch.tensor(IDS)[None], use_cache=False).logits[0]
    torch.testing.assert_close(logits(handle.model), theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", [method for method in METHODS if not FACTS[method].mergeable])
def test_what_is_no_change_of_weights_is_not_merged(base, tmp_path, method):
    save_adapter(adapted(base, spec_of(method)), tmp_path / "adapter", str(base))
    with pytest.raises(ArtifactError, match=f"{method} cannot be merged"):
        merge(base, tmp_path / "adapter", tmp_path / "merged")


def peft_logits(base, folder, dtype_change=lambda model: model):
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(plain, str(folder)).eval()(torch.tensor(IDS)[None]).logits[0, -len(IDS) :]


@pytest.mark.parametrize("method", IN_PEFT)
def test_peft_loads_our_folder_with_equal_logits(base, tmp_path, method):
    handle = adapted(base, spec_of(method))
    move(handle)
    handle.model.eval()
    save_adapter(handle, tmp_path, str(base))
    torch.testing.assert_close(peft_logits(base, tmp_path), logits(handle.model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "parts", [("embed_tokens",), ("lm_head",), ("lm_head", "norms"), ("embed_tokens", "norms")], ids="+".join
)
@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_parts_trained_in_full_beside_an_adapter(tmp_path, arch, parts):
    """Saved, loaded, merged and in PEFT: the same numbers, tied or not."""
    base = make_tiny_base(tmp_path / "base", arch)
    handle = adapted(base, spec_of("lora", modules_to_save=parts))
    move(handle)
    tuned = logits(handle.model.eval())
    save_adapter(handle, tmp_path / "adapter", str(base))
    again = load_model(base)
    load_adapter(again, tmp_path / "adapter")
    torch.testing.assert_close(logits(again.eval()), tuned)
    merge(base, tmp_path / "adapter", tmp_path / "merged")
    torch.testing.assert_close(logits(load_model(tmp_path / "merged").eval()), tuned, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(peft_logits(base, tmp_path / "adapter"), tuned, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["lora", "dora", "vera", "adalora", "ia3", "p_tuning", "prefix_tuning"])
def test_two_adapters_do_not_mix(base, tmp_path, method):
    """Two of one method, trained side by side from other seeds, stay what each is alone."""
    alone = []
    for seed in (1, 2):  # the rates differ too: ia3 draws nothing
        handle = adapted(base, spec_of(method), seed=seed)
        move(handle, rate=seed * 1e-2)
        alone.append(logits(handle.model.eval()))
    first, second = (adapted(base, spec_of(method), seed=seed) for seed in (1, 2))
    move(first, rate=1e-2)
    move(second, rate=2e-2)
    assert torch.equal(logits(first.model.eval()), alone[0]) and torch.equal(logits(second.model.eval()), alone[1])
    assert not torch.allclose(alone[0], alone[1], atol=1e-4)


PATTERNS = {"rank_pattern": {"q_proj": 2, "1.mlp.up_proj": 7}, "alpha_pattern": {"o_proj": 3.0}}


@pytest.mark.parametrize("changes", [PATTERNS, {"top_layers": 1}], ids=["patterns", "top"])
@pytest.mark.parametrize("method", ["lora", "rslora", "dora"])
def test_ranks_alphas_and_layers_of_their_own(base, tmp_path, method, changes):
    spec = spec_of(method, **changes)
    handle = adapted(base, spec)
    ranks = {name.split("layers.")[1]: layer.rank for name, layer in handle.layers.items()}
    if "top_layers" in changes:
        assert set(ranks.values()) == {4} and all(name.startswith("1.") for name in ranks)
    else:
        assert (ranks["0.self_attn.q_proj"], ranks["1.mlp.up_proj"], ranks["0.mlp.up_proj"]) == (2, 7, 4)
    move(handle)
    save_adapter(handle, tmp_path, str(base))
    torch.testing.assert_close(peft_logits(base, tmp_path), logits(handle.model.eval()), rtol=1e-4, atol=1e-4)


def test_a_folder_of_peft_s_own_is_read(base, tmp_path):
    """DoRA and VeRA as PEFT wrote them, its start moved."""
    kinds = {
        "dora": peft.LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "down_proj"], use_dora=True),
        "vera": peft.VeraConfig(r=16, target_modules=["q_proj", "o_proj"], projection_prng_key=3),
    }
    for name, config in kinds.items():
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            in_peft = peft.get_peft_model(plain, config).eval()
        with torch.no_grad():
            for parameter in in_peft.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
            theirs = in_peft(torch.tensor(IDS)[None]).logits[0]
        in_peft.save_pretrained(tmp_path / name)
        model = load_model(base)
        load_adapter(model, tmp_path / name)
        torch.testing.assert_close(logits(model.eval()), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", NF4)
def test_four_bits_leave_float32_folders_beside_luthier_json(base, tmp_path, method):
    handle = adapted(base, spec_of(method))
    move(handle)
    save_adapter(handle, tmp_path, str(base))
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG_FILE, WEIGHTS_FILE, "luthier.json"}

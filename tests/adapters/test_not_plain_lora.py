"""Of each method a trait that plain LoRA under its name does not have."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from luthier.adapters.dora import DoraLinear
from luthier.adapters.handle import AdaptedModel
from luthier.adapters.lora import LoraLinear, LowRankModel
from luthier.adapters.peft_files import is_nf4
from tests.adapters.methods import adapted, move, spec_of
from tests.tiny import make_tiny_base


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_tiny_base(tmp_path_factory.mktemp("traits") / "base", num_hidden_layers=2)


def layer_of_rank_4(handle: AdaptedModel) -> LoraLinear:
    assert isinstance(handle, LowRankModel)
    return next(iter(handle.layers.values()))


def scale_is_alpha_over_the_root_of_the_rank(handle: AdaptedModel) -> bool:
    return layer_of_rank_4(handle).scale == 8 / 4**0.5


def a_stands(handle: AdaptedModel) -> bool:
    layer = layer_of_rank_4(handle)
    a, b = layer.lora_A.detach().clone(), layer.lora_B.detach().clone()
    move(handle)
    return torch.equal(layer.lora_A, a) and not torch.equal(layer.lora_B, b)


def magnitudes_start_as_the_norms_of_the_rows_and_all_move(handle: AdaptedModel) -> bool:
    assert isinstance(handle, LowRankModel)
    layers = [layer for layer in handle.layers.values() if isinstance(layer, DoraLinear)]
    starts = [layer.lora_magnitude_vector.detach().clone() for layer in layers]
    for layer, start_O in zip(layers, starts, strict=True):
        torch.testing.assert_close(start_O, layer.frozen().dequantised().norm(dim=1), rtol=1e-5, atol=1e-6)
    move(handle)
    moved = [bool((layer.lora_magnitude_vector != start).all()) for layer, start in zip(layers, starts, strict=True)]
    return len(layers) == len(handle.layers) and all(moved)


def base_is_in_four_bits(handle: AdaptedModel) -> bool:
    return is_nf4(handle.model)


def both_of_dora_in_four_bits(handle: AdaptedModel) -> bool:
    return is_nf4(handle.model) and magnitudes_start_as_the_norms_of_the_rows_and_all_move(handle)


def vectors_alone_are_trained_of_shared_matrices(handle: AdaptedModel) -> bool:
    assert isinstance(handle, LowRankModel)
    shared = {id(getattr(layer, "shared_A", layer)) for layer in handle.layers.values()}
    return len(shared) == 1 and all(parameter.ndim == 1 for parameter in handle.trained().values())


def every_weight_is_trained(handle: AdaptedModel) -> bool:
    return set(handle.trained()) == {name for name, _ in handle.model.named_parameters() if "lora" not in name}


def last_layer_alone_is_trained(handle: AdaptedModel) -> bool:
    whole = {name for name, _ in handle.model.named_parameters() if name.startswith("model.layers.1.")}
    return set(handle.trained()) == whole and not any("lora" in name for name in whole)


def head_alone_is_trained(handle: AdaptedModel) -> bool:
    return set(handle.trained()) == {"lm_head.weight"}


TRAITS: dict[str, Callable[[AdaptedModel], bool]] = {
    "rslora": scale_is_alpha_over_the_root_of_the_rank,
    "lora_fa": a_stands,
    "dora": magnitudes_start_as_the_norms_of_the_rows_and_all_move,
    "qlora": base_is_in_four_bits,
    "qdora": both_of_dora_in_four_bits,
    "vera": vectors_alone_are_trained_of_shared_matrices,
    "full": every_weight_is_trained,
    "galore": every_weight_is_trained,
    "layers": last_layer_alone_is_trained,
    "head": head_alone_is_trained,
}
"""Methods whose trait no other test of this folder, of test_galore.py or of test_shifted.py looks at."""


@pytest.mark.known_bug("DO2")
@pytest.mark.parametrize("method", TRAITS)
def test_it_has_its_trait_and_plain_lora_has_not(base, method):
    has_trait = TRAITS[method]
    assert has_trait(adapted(base, spec_of(method)))
    assert not has_trait(adapted(base, spec_of("lora")))

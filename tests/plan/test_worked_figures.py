"""Figures that a reader can check by hand, and every shipped base's parameter count."""

from __future__ import annotations

import pytest

from luthier.config.adapter import AdapterSpec
from luthier.plan.known import known_bases, known_shapes, smaller_bases, unknown_base
from luthier.plan.linears import LinearShape, count_parameters
from luthier.plan.machines import machine_named, read_catalogue
from luthier.plan.methods import GB, full_adam_gb, qlora_bytes, weights_gb
from luthier.plan.trainable import count_trainable, lora_size

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def test_a_4096_square_layer_at_r16_trains_128_times_fewer_numbers():
    layer = LinearShape("q_proj", 4096, 4096)
    assert lora_size(layer, 16) == 131_072
    assert layer.size // lora_size(layer, 16) == 128


def test_llama_3_1_8b_at_r16_on_attention():
    shapes = known_shapes("meta-llama/Llama-3.1-8B-Instruct")
    assert count_trainable(shapes, AdapterSpec(lora_r=16, lora_target_modules=ATTENTION)) == 13_631_488


@pytest.mark.parametrize("name", known_bases())
def test_published_totals_follow_from_the_sizes(name):
    shapes = known_shapes(name)
    assert count_parameters(shapes) == shapes.num_parameters


@pytest.mark.parametrize(("kind", "gb"), [("float32", 28.0), ("bfloat16", 14.0), ("nf4", 3.5)])
def test_weights_of_seven_billion(kind, gb):
    assert weights_gb(7e9, kind) == pytest.approx(gb)


def test_adam_in_float32_on_seven_billion():
    assert full_adam_gb(7e9) == pytest.approx(84.0)  # weights + two moments
    assert full_adam_gb(7e9, with_gradients=True) == pytest.approx(112.0)


@pytest.mark.parametrize(
    ("name", "card_gb"), [("llama-2-7b", 16), ("llama-2-13b", 40), ("llama-65b", 48), ("llama-3.1-70b", 80)]
)
def test_qlora_fits_the_cards_it_is_known_to_fit(name, card_gb):
    shapes = known_shapes(name)
    used_gb = qlora_bytes(shapes, AdapterSpec(lora_r=16), 2048, 2048) / GB
    assert used_gb < card_gb
    assert used_gb > weights_gb(shapes.num_parameters, "nf4")


def test_a_65b_in_four_bits_does_not_fit_40_gb():
    assert qlora_bytes(known_shapes("llama-65b"), AdapterSpec(lora_r=16), 2048, 2048) / GB > 40


@pytest.mark.parametrize(("name", "usd"), [("t4", 0.5), ("a10g", 1.0), ("a100-40", 4.0), ("a100-80", 8.0)])
def test_prices_of_the_catalogue(name, usd):
    assert machine_named(name, read_catalogue()).usd_per_hour == usd


def test_names_of_known_bases():
    assert known_shapes("Qwen/Qwen2.5-7B") == known_shapes("qwen2.5-7b") == known_shapes("Qwen2.5-7B-Instruct")
    assert known_shapes("no-such-model") is None
    assert "llama-3.1-8b" in unknown_base("llama-3.1-8bb").hint


def test_smaller_bases_are_smaller_and_of_the_same_kind_first():
    shapes = known_shapes("qwen2.5-14b")
    found = smaller_bases(shapes)
    assert all(other.num_parameters < shapes.num_parameters for _, other in found)
    assert [name for name, _ in found][:3] == ["qwen2.5-7b", "qwen2.5-1.5b", "qwen2.5-0.5b"]

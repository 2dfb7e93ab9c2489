"""Laws that the plan's memory and time must obey whatever the constants are."""

from __future__ import annotations

import pytest

from luthier.config.adapter import AdapterSpec
from luthier.errors import ConfigError
from luthier.plan.activations import MicroBatch
from luthier.plan.known import known_bases, known_shapes
from luthier.plan.linears import layer_linears
from luthier.plan.memory import predict_memory, weight_bytes
from luthier.plan.speed import count_operations, micro_batch_s
from luthier.types import MachineProfile

ADAPTER, MICRO = AdapterSpec(), MicroBatch(1024, 400, 256.0)
MACHINE = MachineProfile("test", "cpu", {"float32": 300.0, "bfloat16": 200.0, "int8": 900.0}, 20.0, 24 << 30)


@pytest.mark.parametrize("name", known_bases())
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_lines_add_up_to_the_peak(name, dtype):
    memory = predict_memory(known_shapes(name), ADAPTER, dtype, MICRO)
    assert sum(line.num_bytes for line in memory.lines) == memory.train_bytes <= memory.peak_bytes
    assert all(line.num_bytes > 0 and line.formula for line in memory.lines)


def test_more_tokens_need_more_and_narrower_weights_need_less():
    shapes = known_shapes("smollm2-360m")

    def train_bytes(dtype="float32", micro=MICRO, adapter=ADAPTER):
        return predict_memory(shapes, adapter, dtype, micro).train_bytes

    assert train_bytes(micro=MicroBatch(2048, 800, 256.0)) > train_bytes()
    assert train_bytes(micro=MicroBatch(1024, 800, 256.0)) > train_bytes()
    assert train_bytes("bfloat16") < train_bytes()
    assert weight_bytes(shapes, "bfloat16") < weight_bytes(shapes, "int8") < weight_bytes(shapes, "float32")
    assert train_bytes(adapter=AdapterSpec(lora_r=4)) < train_bytes()
    assert train_bytes(adapter=AdapterSpec(lora_target_modules=("q_proj", "v_proj"))) < train_bytes()


def test_a_large_base_with_small_micro_batches_peaks_while_it_loads():
    """The stored file is mapped until the last weight is copied out of it."""
    shapes = known_shapes("llama-3.1-8b")  # stored in bfloat16
    small = MicroBatch(64, 10, 64.0)
    for dtype, num_bytes in (("float32", 6), ("bfloat16", 4)):
        memory = predict_memory(shapes, ADAPTER, dtype, small)
        assert memory.peak_bytes == memory.load_bytes > num_bytes * shapes.num_parameters


def test_a_frozen_weight_costs_four_operations_a_token():
    """4N for LoRA: exactly, where every token of every layer is computed."""
    shapes, micro = known_shapes("llama-3.1-8b"), MicroBatch(4096, 4096, 4096.0)
    count = count_operations(shapes, ADAPTER, "bfloat16", micro)
    linears = shapes.num_layers * sum(one.size for one in layer_linears(shapes).values())
    assert count.base == 4 * linears * 4096
    assert count.head == 4 * shapes.vocab_size * shapes.hidden_size * 4096
    assert count.total / 4096 / 1e9 == pytest.approx(33.8, rel=0.03)  # perf.md section 4
    assert count.adapter / count.base == pytest.approx(0.012, abs=0.004)  # 1.2% at r16 and width 4096


def test_untrained_tokens_cost_no_head_and_almost_no_last_layer():
    shapes = known_shapes("smollm2-135m")
    full = count_operations(shapes, ADAPTER, "float32", MicroBatch(1000, 1000, 100.0))
    tenth = count_operations(shapes, ADAPTER, "float32", MicroBatch(1000, 100, 100.0))
    assert tenth.head == full.head / 10
    last_layer = full.base / shapes.num_layers
    assert 0.85 * last_layer * 0.9 < full.base - tenth.base < last_layer * 0.9


def test_layers_below_the_first_adapter_have_no_backward_pass():
    shapes = known_shapes("llama-3.2-1b")
    top = AdapterSpec(lora_target_modules=("15.mlp.down_proj",))
    ratio = (
        count_operations(shapes, ADAPTER, "float32", MICRO).base / count_operations(shapes, top, "float32", MICRO).base
    )
    assert 1.8 < ratio < 2.0


def test_a_faster_machine_is_faster_and_an_evaluation_cheaper():
    shapes = known_shapes("smollm2-135m")
    fast = MachineProfile("fast", "cpu", {"float32": 600.0, "int8": 900.0}, 40.0, 24 << 30)
    slow_s = micro_batch_s(shapes, ADAPTER, "float32", MICRO, MACHINE)
    assert micro_batch_s(shapes, ADAPTER, "float32", MICRO, fast) < slow_s
    assert micro_batch_s(shapes, ADAPTER, "int8", MICRO, MACHINE) < slow_s
    assert micro_batch_s(shapes, ADAPTER, "float32", MICRO, MACHINE, backward=False) < 0.6 * slow_s


def test_a_type_that_the_machine_does_not_run():
    t4 = MachineProfile("t4", "cuda", {"float32": 8100.0}, 320.0, 16 << 30)
    with pytest.raises(ConfigError, match="no bfloat16") as error:
        micro_batch_s(known_shapes("smollm2-135m"), ADAPTER, "bfloat16", MICRO, t4)
    assert "float32" in error.value.hint

"""Profiling watches and changes nothing; its table adds up to the step, its roof to the operations of the model."""

import json

import pytest

from luthier.engine.profile import CLASSES, OUTSIDE, StepProfiler, Work, class_of
from tests.engine.small import VOCAB, run, same, small_model, spec_of, weights_of

WORK = Work(thin_width=4, head_width=VOCAB, flops_per_token=1000, flops_per_kept=500, roof_gflops=2.0)


def test_the_run_is_the_same_bit_for_bit_and_the_table_adds_up(tmp_path):
    """Dropout, weights, history: equal with and without. Three steps are profiled, none of them the first."""
    models = [small_model(dropout=0.2) for _ in range(2)]
    profiler = StepProfiler(3, tmp_path / "p", WORK)
    plain = run(models[0], spec_of(), tmp_path / "a")
    profiled = run(models[1], spec_of(), tmp_path / "b", profiler=profiler)
    assert same(weights_of(models[0]), weights_of(models[1])) and plain.history == profiled.history
    found = profiler.result
    assert found is not None and found.num_steps == 3
    assert [row[0] for row in found.by_class] == [*CLASSES, OUTSIDE]
    assert sum(row[1] for row in found.by_class) == pytest.approx(found.step_ms, rel=0.05)
    parts = {row[0]: row for row in found.by_class}
    assert all(parts[name][1] > 0 and parts[name][3] > 0 for name in CLASSES), found.by_class
    lines = [json.loads(line) for line in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()]
    seen = [(line["num_tokens"], line["num_trained_tokens"]) for line in lines if line["kind"] == "train"]
    num_tokens, num_trained = seen[3][0] - seen[0][0], seen[3][1] - seen[0][1]
    assert found.num_tokens == num_tokens
    flops = 1000 * num_tokens + 500 * num_trained
    assert found.achieved_gflops == pytest.approx(flops / (3e-3 * found.step_ms) / 1e9)
    assert found.share_of_roof == pytest.approx(found.achieved_gflops / 2.0)
    assert found.peak_bytes > sum(found.held.values()) > 0


def test_its_files(tmp_path):
    """A Chrome trace with the operators of those steps, and one page that says the share of the roof."""
    run(small_model(), spec_of(), tmp_path / "r", profiler=StepProfiler(2, tmp_path / "p", WORK), dev_set=None)
    events = json.loads((tmp_path / "p" / "trace.json").read_text())["traceEvents"]
    assert {"aten::mm", "Optimizer.step#AdamW.step"} <= {event.get("name") for event in events}
    page = (tmp_path / "p" / "profile.md").read_text()
    assert all(name in page for name in (*CLASSES, OUTSIDE, "of the roof", "optimizer state", "peak"))


@pytest.mark.parametrize(("max_steps", "profiled"), [pytest.param(1, 0, marks=pytest.mark.slow), (2, 1)])
def test_a_run_shorter_than_asked_for(tmp_path, max_steps, profiled):
    """What there is is written; one step only warms up."""
    profiler = StepProfiler(5, tmp_path / "p", WORK)
    run(small_model(), spec_of(max_steps=max_steps), tmp_path / "r", profiler=profiler, dev_set=None)
    assert (0 if profiler.result is None else profiler.result.num_steps) == profiled
    assert (tmp_path / "p" / "profile.md").exists() == bool(profiled)


OPERATORS = [
    ("aten::mm", ((1000, 64), (64, 128)), "matrix products"),
    ("mkldnn::_linear_pointwise", ((1000, 64), (128, 64)), "matrix products"),
    ("aten::_int_mm", ((1000, 64), (64, 128)), "matrix products"),
    ("aten::addmm", ((1000, 128), (1000, 4), (4, 128)), "LoRA's thin products"),
    ("aten::mm", ((1000, 64), (64, 12)), "LoRA's thin products"),
    ("aten::mm", ((300, 64), (64, VOCAB)), "loss/head"),
    ("aten::_log_softmax", ((300, 7),), "loss/head"),
    ("aten::embedding", ((VOCAB, 64), (1000,)), "other"),
    ("aten::_scaled_dot_product_flash_attention_for_cpu", (), "attention"),
    ("aten::rms_norm", ((1000, 64), (64,)), "norms/elementwise"),
    ("aten::silu", ((1000, 64),), "norms/elementwise"),
    ("aten::_fused_adamw_", (), "optimizer"),
    ("aten::copy_", ((1000, 64), (1000, 64)), "other"),
    ("AccumulateGrad", ((1000, 64),), "other"),
    ("autograd::engine::evaluate_function: MulBackward0", (), "norms/elementwise"),
    ("_SiluGatedBackward", ((1000, 64),), "norms/elementwise"),
    ("_CrossEntropyBackward", (), "loss/head"),
    ("_Projection", ((1000, 64), (4, 64), (128, 4)), "matrix products"),
    ("aten::linalg_vector_norm", ((64, 4),), "optimizer"),
    ("Optimizer.step#AdamW.step", (), "optimizer"),
]


@pytest.mark.parametrize(
    ("name", "shapes", "expected"), OPERATORS, ids=[f"{o[0]}-{i}" for i, o in enumerate(OPERATORS)]
)
def test_class_of_an_operator(name, shapes, expected):
    """By name, and for products by shape."""
    assert class_of(name, shapes, WORK) == expected


def test_without_adapters_no_product_is_thin():
    """Full fine-tuning: a narrow product is a matrix product like any other."""
    assert class_of("aten::mm", ((1000, 4), (4, 128)), Work(0, 96, 1, 1)) == "matrix products"

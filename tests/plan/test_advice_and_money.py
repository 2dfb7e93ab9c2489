"""What is proposed exists and really fits; what things cost; who a machine is."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import yaml
from pydantic import ValidationError

from luthier.config.project import ProjectSpec
from luthier.errors import ConfigError
from luthier.models.spec import _FAMILIES
from luthier.plan.activations import MicroBatch
from luthier.plan.advise import cheapest_change, dtypes_on_offer
from luthier.plan.dtype import fastest_dtype
from luthier.plan.known import known_shapes
from luthier.plan.linears import OWN_MODELS
from luthier.plan.machines import (
    GIB,
    machine_named,
    price_here,
    probe_file,
    read_catalogue,
    this_machine,
    usable_memory_bytes,
)
from luthier.plan.money import ServingAssumptions, assumptions, break_even_requests, money, monthly_costs
from luthier.plan.predict import num_evaluations, predict
from luthier.plan.workload import Workload, estimate, resized
from luthier.types import MachineProfile

MACHINE = MachineProfile("test", "cpu", {"float32": 300.0, "bfloat16": 200.0, "int8": 900.0}, 20.0, 24 * GIB)


def project(**train) -> ProjectSpec:
    return ProjectSpec.model_validate({"data": {"train": ["x.jsonl"]}, "train": {"micro_batch_tokens": 8192, **train}})


def workload(spec: ProjectSpec, longest: int = 400) -> Workload:
    return estimate(
        [longest, 200, 300], 0.4, num_rows=3000, micro_batches=110, dev_share=0.1, budget=spec.train.micro_batch_tokens,
        source="test",
    )  # fmt: skip


def applied(spec: ProjectSpec, settings) -> ProjectSpec:
    """The project with the proposed overrides, as --set would apply them: raises when one does not exist."""
    raw = spec.model_dump(mode="json")
    for key, value in settings:
        section, leaf = key.split(".")
        assert leaf in raw[section], key
        raw[section][leaf] = value.strip("[]").split(", ") if value.startswith("[") else value
    return ProjectSpec.model_validate(raw)


@pytest.mark.parametrize("base", ["smollm2-1.7b", "qwen2.5-7b", "phi-3-mini", "gemma-2-9b"])
@pytest.mark.parametrize("gib", [6, 12, 24, 40])
def test_the_proposed_settings_exist_and_make_it_fit(base, gib):
    spec, shapes = project(), known_shapes(base)
    machine = replace(MACHINE, memory_bytes=gib * GIB)
    work = workload(spec)
    change = cheapest_change(shapes, spec, work, machine)
    assert change is not None
    changed = applied(spec, change.settings)
    new_shapes = known_shapes(changed.model.base) if dict(change.settings).get("model.base") else shapes
    again = predict(new_shapes, changed, resized(work, spec.train, changed.train), machine)
    assert again.fits and again == change.prediction


def test_a_smaller_budget_keeps_the_tokens_of_a_step():
    spec, shapes = project(gradient_accumulation_steps=2), known_shapes("smollm2-1.7b")
    change = cheapest_change(shapes, spec, workload(spec), replace(MACHINE, memory_bytes=16 * GIB))
    changed = applied(spec, change.settings).train
    assert [key for key, _ in change.settings][:2] == ["train.micro_batch_tokens", "train.gradient_accumulation_steps"]
    assert changed.micro_batch_tokens * changed.gradient_accumulation_steps == 2 * 8192
    assert changed.micro_batch_tokens >= 400


def test_nothing_is_proposed_that_does_not_exist():
    offered = dtypes_on_offer(MACHINE)
    for dtype in offered:
        ProjectSpec.model_validate({"data": {"train": ["x"]}, "model": {"dtype": dtype}})
    with pytest.raises(ValidationError):
        ProjectSpec.model_validate({"data": {"train": ["x"]}, "model": {"dtype": "fp8"}})
    assert "fp8" not in offered
    assert dtypes_on_offer(replace(MACHINE, rates_gflops={"float32": 1.0})) == ["float32"]


def test_no_machine_is_too_small_for_an_honest_answer():
    spec = project()
    assert (
        cheapest_change(known_shapes("llama-2-70b"), spec, workload(spec), replace(MACHINE, memory_bytes=GIB)) is None
    )


def test_steps_and_evaluations_follow_the_loop():
    spec = project(num_epochs=3, gradient_accumulation_steps=4)
    work = workload(spec)
    assert work.num_steps(spec.train) == 3 * 28
    assert num_evaluations(spec, 84) == 3
    assert num_evaluations(project(num_epochs=3, eval_steps=10), 84) == 3 + 8
    assert work.num_steps(project(max_steps=7).train) == 7


def test_int8_is_planned_only_where_it_runs():
    """Another architecture runs through transformers, in float32 when int8 is asked for; auto does not pick it."""
    assert set(OWN_MODELS) == set(_FAMILIES)
    ours = known_shapes("smollm2-135m")
    assert ours is not None
    other, spec = replace(ours, model_type="gpt_neox"), project()
    quick = replace(MACHINE, rates_gflops={"float32": 30.0, "bfloat16": 30.0, "int8": 1e5}, bandwidth_gb_s=1e6)
    for asked, here, there in (("int8", "int8", "float32"), ("auto", "int8", "float32"), ("bfloat16",) * 3):
        asking = spec.model_copy(update={"model": spec.model.model_copy(update={"dtype": asked})})
        found = [predict(shapes, asking, workload(spec), quick).dtype for shapes in (ours, other)]
        assert found == [here, there]
    named = spec.adapter.model_copy(update={"lora_target_modules": ("query_key_value",)})
    with pytest.raises(ConfigError, match="does not know the layers of 'gpt_neox'"):
        predict(other, spec.model_copy(update={"adapter": named}), workload(spec), MACHINE)


def test_money():
    catalogue = read_catalogue()
    assert money(7200, catalogue["a100-40"]) == pytest.approx(8.0)
    assert money(7200, MACHINE) is None


def test_monthly_costs_and_break_even_agree():
    assume = ServingAssumptions()
    for way, needed in break_even_requests(2.0, assume).items():
        for shift, cheaper in ((1.02, True), (0.98, False)):
            costs = {one.way: one.total for one in monthly_costs(round(needed * shift), 2.0, assume)}
            assert (costs["tuned, served by you"] < costs[way]) is cheaper


def test_few_shot_by_hand():
    few = monthly_costs(1000, 0.0)[2]
    assert few.total == pytest.approx(1000 * ((150 + 200 + 8 * 250) * 2.5 + 100 * 10) / 1e6)


def test_an_api_that_is_nearly_free_never_loses():
    cheap = assumptions(["input_usd_per_million=0", "output_usd_per_million=0.0001", "server_usd_per_hour=9"])
    assert break_even_requests(0.0, cheap)["few-shot by API"] == float("inf")


@pytest.mark.parametrize(
    "text", ["input_usd_per_milion=2", "shots=many", "shots", "answer_tokens=-1", "requests_per_s=0", "shots=2.5"]
)
def test_bad_assumptions(text):
    with pytest.raises(ConfigError) as error:
        assumptions([text])
    assert error.value.hint


def test_unknown_machine_names_the_nearest():
    with pytest.raises(ConfigError) as error:
        machine_named("a100-8O", read_catalogue())
    assert "did you mean a100-80" in error.value.hint


def test_own_machines_beside_the_project_file(tmp_path):
    (tmp_path / "machines.yaml").write_text(
        "t4: {title: cheaper, device: cuda, memory_gib: 15, peak_tflops: {float32: 8.1}, bandwidth_gb_s: 320, "
        "usd_per_hour: 0.2}\nbox: {title: ours, device: cpu, memory_gib: 64, peak_tflops: {float32: 1.5}, "
        "bandwidth_gb_s: 50, usd_per_hour: null}\n"
    )
    found = read_catalogue(tmp_path)
    assert found["t4"].usd_per_hour == 0.2 and found["box"].rates_gflops == {"float32": 1500.0}
    assert "a10g" in found and price_here(tmp_path) is None
    (tmp_path / "machines.yaml").write_text("here: {usd_per_hour: 0.25}\n")
    assert price_here(tmp_path) == 0.25 and "here" not in read_catalogue(tmp_path)


@pytest.mark.parametrize("text", ["t4: 5", "t4: {title: x}", "[", "t4: {title: x, vram: 3}"])
def test_bad_catalogue(tmp_path, text):
    (tmp_path / "machines.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"machines\.yaml"):
        read_catalogue(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"device": "tpu"}, "cpu or cuda"),
        ({"peak_tflops": {"float32": 0}}, "rate of float32"),
        ({"peak_tflops": {}}, "no rate"),
        ({"memory_gib": float("inf")}, "infinity"),
        ({"bandwidth_gb_s": -1}, "bandwidth"),
        ({"usd_per_hour": -1}, "price"),
    ],
)
def test_a_machine_of_impossible_figures_is_refused(tmp_path, change, named):
    entry = {"title": "x", "device": "cpu", "memory_gib": 4, "peak_tflops": {"float32": 1}, "bandwidth_gb_s": 9}
    (tmp_path / "machines.yaml").write_text(yaml.safe_dump({"box": entry | {"usd_per_hour": 1} | change}))
    with pytest.raises(ConfigError, match=named):
        read_catalogue(tmp_path)


def test_a_probe_is_read_back_and_a_torn_one_is_not(tmp_path):
    shapes = known_shapes("smollm2-135m")
    path = probe_file(shapes, tmp_path)
    path.write_text(json.dumps(asdict(replace(MACHINE, probed=True))))
    assert this_machine(shapes, tmp_path) == replace(MACHINE, probed=True)
    other = this_machine(replace(shapes, hidden_size=64), tmp_path)
    assert not other.probed, "a probe at another base's shapes says nothing about this one"
    assert this_machine(shapes, tmp_path, num_threads=MACHINE.num_threads).probed
    assert not this_machine(shapes, tmp_path, num_threads=MACHINE.num_threads + 1).probed, "other threads, other rates"
    for torn in ({"device": "tpu"}, {"rates_gflops": {"float32": "x"}}, {"rates_gflops": [1]}, {"bandwidth_gb_s": 0}):
        path.write_text(json.dumps(asdict(replace(MACHINE, probed=True)) | torn))
        assert not this_machine(shapes, tmp_path).probed, torn
    path.write_text('{"name": "x"')
    default = this_machine(shapes, tmp_path, num_threads=3)
    assert not default.probed and default.num_threads == 3
    assert default.memory_bytes == usable_memory_bytes()


def test_budget_change_keeps_the_rows():
    spec = project()
    work, half = workload(spec), project(micro_batch_tokens=4096).train
    small = resized(work, spec.train, half)
    assert small.num_tokens == work.num_tokens and small.micro_batches == pytest.approx(
        2 * work.micro_batches, rel=0.02
    )
    assert small.peak == MicroBatch(4096, 1638, work.peak.sight)


@pytest.mark.parametrize(
    ("rates", "fastest"),
    [
        ({"float32": 450.0, "bfloat16": 900.0}, "bfloat16"),
        ({"float32": 450.0, "bfloat16": 900.0, "int8": 3600.0}, "int8"),
        ({"float32": 257.0, "bfloat16": 147.0, "int8": 950.0}, "int8"),  # AVX-512 without bfloat16 instructions
        ({"float32": 100.0, "bfloat16": 115.0}, "float32"),  # shorter, but by less than 15%
        ({"bfloat16": 900.0}, "float32"),
    ],
)
def test_the_fastest_type_by_the_probe(rates, fastest):
    assert fastest_dtype(replace(MACHINE, rates_gflops=rates)) == fastest
    assert fastest_dtype(replace(MACHINE, rates_gflops=rates), has_int8=False) != "int8"

"""The engine against its readable twin `examples/plain_sft.py`: pedagogy that cannot rot, and an oracle."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from luthier.adapters.lora import apply_lora
from luthier.adapters.stored import load_adapter
from luthier.config.adapter import AdapterSpec
from luthier.engine.inputs import StepPlan
from luthier.models.load import load_model
from tests.engine.small import make_batch, plan_epoch, rows, run, same, spec_of, weights_of

FILE = Path(__file__).parents[2] / "examples" / "plain_sft.py"


@pytest.fixture(scope="module")
def plain():
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("plain_sft", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("scheduler", ["linear", "cosine"])
def test_engine_equals_the_plain_loop_bitwise(tmp_path, tiny_base, plain, accumulation, scheduler):
    """Own decoder, dropout, decay, clipping, accumulation with a short last window: every weight and every loss."""
    spec = spec_of(
        gradient_accumulation_steps=accumulation, lr_scheduler=scheduler, weight_decay=0.1, num_epochs=2, seed=3
    )
    models = []
    for _ in range(2):
        models.append(load_model(tiny_base))
        apply_lora(models[-1], AdapterSpec(lora_r=4, lora_dropout=0.1), seed=1)
    run(models[0], spec, tmp_path, dev_set=None)
    chosen = rows(24)
    planned = StepPlan(chosen, plan_epoch, spec).steps_from(0, 0)
    steps = [[plain.collate([chosen[i] for i in micro]) for micro in step.micro_batches] for step in planned]
    losses = plain.plain_sft(models[1], steps, spec)
    assert same(weights_of(models[0]), weights_of(models[1]))
    logged = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert logged == pytest.approx(losses, rel=1e-12)


def test_batches_of_the_twin_are_the_engines(plain):
    """Two independent packers of one row set agree in every field."""
    chosen = rows(6)
    left, right = plain.collate(chosen), make_batch(chosen)
    for name in ("ids_T", "positions_T", "cu_seqlens", "keep_K", "targets_K"):
        assert torch.equal(getattr(left, name).long(), torch.as_tensor(getattr(right, name)))


def test_example_runs_as_a_script(tmp_path, tiny_base, plain, capsys):
    """From a JSONL of prompts and completions to a PEFT folder that loads."""
    lines = [{"prompt": f"color {i}?", "completion": "red" if i % 2 else "blue"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plain.main(str(tiny_base), str(tmp_path / "rows.jsonl"), str(tmp_path / "out"))
    assert "step 1 of" in capsys.readouterr().out
    assert load_adapter(load_model(tiny_base), tmp_path / "out").num_trainable > 0

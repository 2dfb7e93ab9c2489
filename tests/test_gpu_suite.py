"""benchmarks/gpu_suite.py on a CPU: every stage really runs, and what fails is told without stopping the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_suite
from luthier.models.load import load_model

SUITE = Path(gpu_suite.__file__)


def suite(results: Path, *options: str) -> tuple[subprocess.CompletedProcess, dict]:
    """The command as a user runs it, and what it wrote."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SUITE), "--results", str(results), *options]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    (path,) = results.glob("gpu_suite-????????-??????.json")
    return done, json.loads(path.read_text())


@pytest.mark.slow
def test_the_whole_suite_on_a_cpu(tmp_path):
    done, record = suite(tmp_path, "--device", "cpu", "--shape", "tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(record["stages"]) == list(gpu_suite.STAGES) and record["failed"] == []
    missing = {name for name, found in record["stages"].items() if found["status"] == "missing"}
    assert missing <= {"bitsandbytes", "speed_trl", "speed_trl_defaults"}
    assert all(name in done.stdout for name in gpu_suite.STAGES)
    ours = record["stages"]["speed_luthier"]["figures"]
    assert ours["tokens_per_s"] > 0 and ours["peak_bytes"] > 0 and 0 < ours["share_of_roof"] < 1
    assert record["versions"]["torch"] == torch.__version__


@pytest.mark.slow
def test_without_a_gpu_each_stage_says_so_and_the_exit_code_does(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done, record = suite(tmp_path, "--device", "cuda", "--only", "out_of_memory,varlen")
    assert done.returncode == 1 and record["failed"] == ["out_of_memory", "varlen"]
    assert all("CUDA" in found["why"] or "NVIDIA" in found["why"] for found in record["stages"].values())


def test_an_unknown_stage_is_refused_by_name():
    done = subprocess.run([sys.executable, str(SUITE), "--only", "varlen,speeds"], capture_output=True, text=True)
    assert done.returncode == 2 and "no stage speeds" in done.stderr


def test_a_stage_that_takes_too_long_has_failed_and_says_it():
    found = gpu_suite.run_stage("float32", "cpu", "tiny", 0.2)
    assert found["status"] == "failed" and "took more than" in found["why"]
    assert gpu_suite.run_stage("float32", "cpu", "tiny", 0.0)["why"].startswith("the suite's time")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_that_are_a_little_off_are_seen(tmp_path, dtype):
    """The check itself: one weight of the reference 5% off is seen in float32, twice as large in bfloat16."""
    cpu, base = torch.device("cpu"), gpu_suite.small_base(tmp_path)
    model = load_model(base, dtype=dtype)
    weights = {name: x.weight.detach().float() for name, x in model.linear_modules().items()}
    assert gpu_suite.losses_and_gradients(model, base, cpu, weights, dtype)["loss_error"] < 1e-2
    broken = load_model(base, dtype=dtype)
    weights["model.layers.0.mlp.down_proj"] = weights["model.layers.0.mlp.down_proj"] * (
        1.05 if dtype == "float32" else 2
    )
    with pytest.raises(AssertionError, match="relative error is"):
        gpu_suite.losses_and_gradients(broken, base, cpu, weights, dtype)

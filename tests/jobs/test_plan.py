"""`luthier plan` end to end, in a process where torch cannot be imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_TORCH = """
import sys
class Ban:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('torch', 'transformers'): raise ImportError('banned: ' + name)
sys.meta_path.insert(0, Ban())
from luthier.cli import main
sys.argv = ['luthier', *sys.argv[1:]]
main()
"""


@pytest.fixture
def folder(tmp_path, tiny_base):
    rows = [{"prompt": f"what is {i} plus {i}?", "completion": f"it is {2 * i}"} for i in range(120)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "luthier.yaml").write_text(f"model:\n  base: {tiny_base}\ndata:\n  train: rows.jsonl\n")
    return tmp_path


def plan(folder: Path, *arguments: str, environment: dict[str, str] | None = None):
    import os

    env = {**os.environ, "PYTHONPATH": str(ROOT), "LUTHIER_CACHE": str(folder / "cache"), **(environment or {})}
    command = [sys.executable, "-c", WITHOUT_TORCH, "plan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env)


def test_says_first_whether_it_fits(folder):
    done = plan(folder, "--all-machines")
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.splitlines()
    assert "fits: peak" in first and "GiB" in first and "about" in first
    text = "\n".join(rest)
    for word in ("activations", "optimizer", "tokenised", "not probed", "a100-80", "8.00"):
        assert word in text


def test_a_config_json_without_weights_is_enough(folder, tiny_base):
    whole = json.loads(plan(folder, "--json").stdout)
    (folder / "sizes").mkdir()
    (folder / "sizes" / "config.json").write_bytes((tiny_base / "config.json").read_bytes())
    bare = json.loads(plan(folder, "--json", "--set", "model.base=sizes").stdout)
    assert bare["num_parameters"] == whole["num_parameters"] > 0 and bare["num_trainable"] == whole["num_trainable"]


def test_json_holds_everything(folder):
    done = plan(folder, "--json", "--machine", "T4", "--monthly-requests", "50000", "--assume", "shots=4")
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert value["here"]["fits"] and value["here"]["usd"] >= 0
    assert value["here"]["machine"]["name"].startswith("t4")
    assert sum(line["num_bytes"] for line in value["here"]["memory"]["lines"]) == value["here"]["memory"]["train_bytes"]
    assert value["assumptions"]["shots"] == 4 and len(value["monthly"]) == 3
    assert value["workload"]["num_rows"] == 96  # 0.8 of 120


@pytest.mark.slow
def test_rows_that_training_never_sees_are_not_counted(folder):
    with open(folder / "rows.jsonl", "a") as file:
        for i in range(40):
            file.write(json.dumps({"prompt": f"{100 + i} " * 900, "completion": "x"}) + "\n")
    for kept, words in (("error", "prepare refuses"), ("quarantine", "prepare sets aside")):
        work = json.loads(plan(folder, "--json", "--set", f"data.over_length={kept}").stdout)["workload"]
        assert work["longest"] < 1024 and work["peak"]["num_tokens"] <= 1024 and words in work["source"]
        assert work["num_rows"] == 96  # 0.8 of the 120 that fit
    none = plan(folder, "--set", "train.sequence_len=8")
    assert none.returncode == 2 and "every row is longer than train.sequence_len = 8" in none.stderr


def test_never_is_said_and_is_null_in_json(folder):
    free = [part for kind in ("input", "output", "embedding") for part in ("--assume", f"{kind}_usd_per_million=0")]
    months = ("--monthly-requests", "9", *free)
    said = plan(folder, *months)
    assert said.returncode == 0 and "never cheaper than few-shot by API" in said.stdout

    def refuse(constant: str):
        raise AssertionError(f"{constant} is not JSON")

    value = json.loads(plan(folder, "--json", *months).stdout, parse_constant=refuse)
    assert value["break_even_requests"]["few-shot by API"] is None


def test_a_known_base_needs_no_folder(folder):
    done = plan(folder, "--set", "model.base=meta-llama/Llama-2-7b-hf", "--machine", "a10g", "--json")
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert value["num_parameters"] == 6_738_415_616
    assert not value["here"]["fits"]
    assert ["model.dtype", "bfloat16"] in value["change"]["settings"]
    assert "4 characters a token" in value["workload"]["source"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--machine", "a100-81"), "did you mean a100-80"),
        (("--set", "model.base=llama-2-7bb"), "did you mean llama-2-7b"),
        (("--set", "adapter.lora_target_modules=[q_porj]"), "nearest is"),
        (("--monthly-requests", "5", "--assume", "shotz=3"), "did you mean shots"),
        (("--set", "data.train=[gone.jsonl]"), "gone.jsonl"),
    ],
)
def test_bad_input_says_what_to_do(folder, arguments, message):
    done = plan(folder, *arguments)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr


def test_prepared_data_is_counted(folder):
    env = {"PYTHONPATH": str(ROOT), "LUTHIER_CACHE": str(folder / "cache"), "PATH": "/usr/bin:/bin"}
    prepared = subprocess.run(
        [sys.executable, "-m", "luthier", "prepare"], cwd=folder, env=env, capture_output=True, text=True
    )
    assert prepared.returncode == 0, prepared.stderr
    value = json.loads(plan(folder, "--json").stdout)
    assert value["workload"]["is_exact"] and "counted on the prepared data" in value["workload"]["source"]
    changed = json.loads(plan(folder, "--json", "--set", "data.min_answer_chars=2").stdout)
    assert not changed["workload"]["is_exact"]

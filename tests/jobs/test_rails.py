"""The engine's rails through the CLI: rehearsal, splits, profile, waste and start-up, on record and on the console."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, OPTConfig, OPTForCausalLM

from luthier.errors import ConfigError, Interrupted, TrainError
from luthier.jobs import machine, session
from luthier.losses.registry import LOSSES
from luthier.losses.sft import sft_loss_sum
from luthier.store.publish import read_manifest, verify_folder
from tests.jobs.toy import make_texts, write_project
from tests.tiny import make_tokenizer

QUICK = ("--set", "train.max_steps=3", "--set", "train.micro_batch_tokens=256")


@pytest.fixture
def project(tmp_path, tiny_base):
    return write_project(tmp_path, tiny_base, make_texts(60, seed=3))


def trained(project: Path, output: str = "runs") -> tuple[Path, dict]:
    (folder,) = (project.parent / output).glob("train-????????????")
    return folder, read_manifest(folder)["facts"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def test_the_record_says_what_was_rehearsed_wasted_and_waited_for(project, luthier):
    result = luthier("train", "-c", project, *QUICK)
    assert result.exit_code == 0, result.output
    folder, facts = trained(project)
    rehearsal, waste = facts["rehearsal"], facts["waste"]
    assert 0 < rehearsal["num_tokens"] <= 256 and 0 < rehearsal["num_kept"] < rehearsal["num_tokens"]
    assert 0 < rehearsal["peak_bytes"] <= facts["peak_bytes"] and facts["max_tokens"] is None
    assert 0 < facts["startup_s"] < waste["wall_s"] and waste["padding_tokens"] == 0
    assert waste["recompute_s"] > 0 and waste["evaluation_s"] > 0 and waste["idle_s"] > 0
    for words in ("spent without learning: padding 0 tokens (0.0%)", "recompute", "after the best step", "idle"):
        assert words in result.output
    again = luthier("train", "-c", project, *QUICK)
    assert "unchanged" in again.output and "spent without learning" in again.output, "a reused stage shows them too"
    assert verify_folder(folder) == []


def test_a_run_is_held_against_its_plan_and_priced(project, luthier):
    """Peak and time always; money once `here` has a price beside the project file. A price that is none is refused."""
    (project.parent / "machines.yaml").write_text("here: {usd_per_hour: 3600}\n")
    result = luthier("train", "-c", project, *QUICK)
    assert result.exit_code == 0, result.output
    facts = trained(project)[1]
    planned, words = facts["planned"], " ".join(result.output.split())
    # The measured peak is that of the whole process, which here is the test suite's.
    assert planned["usd"] == pytest.approx(planned["total_s"]) and facts["peak_bytes"] > 0.2 * planned["peak_bytes"]
    paid = re.search(r"planned: peak memory .*GiB and took .*GiB, time .*, money .*USD and took ([0-9.]+) USD", words)
    assert paid and float(paid[1]) == pytest.approx(facts["waste"]["wall_s"], abs=1e-3), words
    assert "money, all of the above" in words
    said = luthier("plan", "-c", project, *QUICK)
    assert said.exit_code == 0 and " USD" in said.output
    (project.parent / "machines.yaml").write_text("here: {usd_per_hour: cheap}\n")
    refused = luthier("train", "-c", project, *QUICK, "--set", "train.seed=1")
    assert "the price is 'cheap'" in str(refused.exception) and "usd_per_hour: 0.4" in refused.exception.hint


def test_the_machine_is_probed_said_and_recorded_but_is_no_part_of_the_key(project, luthier, monkeypatch, tmp_path):
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    result = luthier("train", "-c", project, *QUICK)
    assert result.exit_code == 0 and "GFLOP/s at this model's shapes; training in float32" in " ".join(
        result.output.split()
    )
    folder, facts = trained(project)
    assert facts["machine"]["probed"] and facts["machine"]["rates_gflops"]["float32"] > 0
    (kept,) = (tmp_path / "cache").glob("machine-*.json")
    assert json.loads(kept.read_text()) == facts["machine"]
    assert facts["dtype"] == "float32" and "machine" not in read_manifest(folder)["inputs"]


def test_auto_is_decided_once_for_a_run_that_is_resumed(project, luthier, monkeypatch):
    """The first probe finds bfloat16 fastest, the one after the interruption float32: the run goes on as it began."""
    rates, picked = iter([{"float32": 10.0, "bfloat16": 1000.0}, {"float32": 10.0}]), []
    probed = machine.probe_machine

    def probe(*arguments):
        return dataclasses.replace(probed(*arguments), rates_gflops=next(rates))

    plain = session.load_frozen

    def load(folder, *, dtype, **more):
        picked.append(dtype)
        if len(picked) == 1:
            raise Interrupted("stopped")
        return plain(folder, dtype=dtype, **more)

    monkeypatch.setattr(machine, "probe_machine", probe)
    monkeypatch.setattr(session, "load_frozen", load)
    auto = ("--set", "model.dtype=auto")
    assert isinstance(luthier("train", "-c", project, *QUICK, *auto).exception, Interrupted)
    assert luthier("train", "-c", project, *QUICK, *auto).exit_code == 0
    assert picked == ["bfloat16", "bfloat16"] and trained(project)[1]["dtype"] == "bfloat16"


def test_a_base_whose_sizes_have_other_names_is_trained_unprobed(tmp_path, luthier):
    base = tmp_path / "opt"
    vocab_size = make_tokenizer(base)
    config = OPTConfig(
        vocab_size=vocab_size, hidden_size=32, ffn_dim=64, num_hidden_layers=1, num_attention_heads=2,
        word_embed_proj_dim=32, max_position_embeddings=256, dropout=0.0, bos_token_id=1, eos_token_id=2,
        pad_token_id=2,
    )  # fmt: skip
    OPTForCausalLM(config).save_pretrained(base)
    project = write_project(tmp_path, base, make_texts(60, seed=3))
    result = luthier("train", "-c", project, *QUICK, "--set", "model.dtype=auto")
    assert result.exit_code == 0, (result.output, result.exception)
    assert "not probed" in result.output and trained(project)[1]["machine"] is None
    assert trained(project)[1]["dtype"] == "float32"


def test_a_probe_that_cannot_be_kept_is_said_and_the_training_goes_on(project, luthier, monkeypatch, tmp_path):
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "machine-64x128.json").mkdir(parents=True)  # stands in its way, whoever the user is
    result = luthier("train", "-c", project, *QUICK)
    assert result.exit_code == 0, (result.output, result.exception)
    said = " ".join(result.output.split())
    assert "the probe's figures cannot be kept for luthier plan" in said and "GFLOP/s" in said
    assert trained(project)[1]["machine"]["probed"]
    refused = luthier("plan", "-c", project, "--probe")
    assert isinstance(refused.exception, ConfigError) and "LUTHIER_CACHE" in refused.exception.hint


@pytest.mark.parametrize("dtype", ["int8", "auto"])
def test_the_record_of_a_base_that_cannot_be_int8_does_not_claim_it(tmp_path, luthier, monkeypatch, dtype):
    base = tmp_path / "neox"
    config = GPTNeoXConfig(
        vocab_size=make_tokenizer(base), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    GPTNeoXForCausalLM(config).save_pretrained(base)
    rates = {"float32": 10.0, "bfloat16": 10.0, "int8": 1000.0}
    probed = machine.probe_machine
    monkeypatch.setattr(
        machine, "probe_machine", lambda *about: dataclasses.replace(probed(*about), rates_gflops=rates)
    )
    project = write_project(tmp_path, base, make_texts(60, seed=3))
    result = luthier("train", "-c", project, *QUICK, "--set", f"model.dtype={dtype}")
    assert result.exit_code == 0, (result.output, result.exception)
    assert trained(project)[1]["dtype"] == "float32" and "would be faster" not in result.output
    assert ("int8 needs luthier's own decoder" in " ".join(result.output.split())) is (dtype == "int8")


def test_profile_writes_its_files_and_leaves_the_training_as_it_is(project, luthier):
    plain = luthier("train", "-c", project, *QUICK)
    assert plain.exit_code == 0 and not list(project.parent.glob("runs/profile-*"))
    elsewhere = ("--set", "output_dir=runs-profile")
    profiled = luthier("train", "-c", project, *QUICK, *elsewhere, "--profile", "2")
    assert profiled.exit_code == 0, profiled.output
    left, right = weights(trained(project)[0]), weights(trained(project, "runs-profile")[0])
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    (folder,) = (project.parent / "runs-profile").glob("profile-*")
    assert json.loads((folder / "trace.json").read_text())["traceEvents"]
    page = (folder / "profile.md").read_text()
    assert "2 steps of" in page and "matrix products" in page
    for words in ("LoRA's thin products", "loss/head", "optimizer state", "profile.md", "2 steps of"):
        assert words in profiled.output
    assert folder.name.removeprefix("profile") == trained(project, "runs-profile")[0].name.removeprefix("train")


def test_profile_of_what_stands_says_so_and_how_to(project, luthier):
    assert luthier("train", "-c", project, *QUICK).exit_code == 0
    result = luthier("train", "-c", project, *QUICK, "--profile", "2")
    assert result.exit_code == 0 and "nothing to profile" in result.output
    assert "--set output_dir=runs-profile" in result.output and not list(project.parent.glob("runs/profile-*"))
    single = ("--set", "train.max_steps=1", "--set", "output_dir=other", "--profile", "2")
    short = luthier("train", "-c", project, *single)
    assert short.exit_code == 0 and "fewer than two steps" in short.output
    assert luthier("train", "-c", project, "--profile", "-1").exit_code == 2


@pytest.fixture
def room(monkeypatch):
    """room(n): from then on the head finds no room for more than n positions, and raises what torch raises."""
    plain = sft_loss_sum

    def leave(limit: int) -> None:
        def full(logits_KV, targets_K):
            if len(targets_K) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return plain(logits_KV, targets_K)

        monkeypatch.setitem(LOSSES, "sft", lambda spec, second: full)

    return leave


def test_out_of_memory_splits_in_the_rehearsal_says_so_and_ends_with_the_same_figures(project, luthier, room):
    assert luthier("train", "-c", project, *QUICK).exit_code == 0
    _, whole = trained(project)
    room(whole["rehearsal"]["num_kept"] - 1)
    tight = luthier("train", "-c", project, *QUICK, "--set", "output_dir=tight")
    assert tight.exit_code == 0, tight.output
    said = " ".join(tight.output.split())
    assert said.count("are split by rows; the result is the same") == 1
    assert "train.micro_batch_tokens:" in said and "gradient_accumulation_steps: 2" in said
    folder, facts = trained(project, "tight")
    assert facts["max_tokens"] == facts["rehearsal"]["num_tokens"] < whole["rehearsal"]["num_tokens"]
    assert facts["dev_loss"] == pytest.approx(whole["dev_loss"], abs=2e-5)
    assert (facts["tokens"], facts["steps"]) == (whole["tokens"], whole["steps"])
    kinds = [json.loads(line)["kind"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert kinds == ["split", "train", "train", "train", "dev"]


def test_a_row_that_cannot_fit_is_named_before_the_first_step(project, luthier, room):
    room(1)
    refused = luthier("train", "-c", project, *QUICK)
    assert isinstance(refused.exception, TrainError) and "does not fit by itself" in str(refused.exception)
    assert "train.sequence_len below" in refused.exception.hint
    (work,) = (project.parent / "runs").glob("train-*.work")
    assert not (work / "checkpoints").exists()

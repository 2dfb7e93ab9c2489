"""The main job through the CLI, with real training: every verdict, reuse, resume, and what a user does wrong."""

import fcntl
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from luthier.adapters.stored import load_adapter
from luthier.errors import ArtifactError, EvaluateError, Interrupted, LuthierError
from luthier.models.load import load_model
from luthier.ship.parity import model_logits
from luthier.store.publish import verify_folder
from tests.jobs.toy import make_texts, write_csv, write_project

NO_LEARNING = ("--set", "train.max_steps=1", "--set", "train.learning_rate=1e-7")


def only(folder: Path, pattern: str) -> Path:
    found = list(folder.glob(pattern))
    assert len(found) == 1, f"{pattern}: {found}"
    return found[0]


def test_a_tune_that_earns_it_ships_with_exit_0(shipped):
    path, result = shipped
    assert result.exit_code == 0, result.output
    runs = path.parent / "runs"
    verdict = json.loads((only(runs, "evaluate-*") / "verdict.json").read_text())
    assert verdict["verdict"] == "SHIP_TUNE" and verdict["metrics"]["accuracy"]["tuned"] > 0.9
    for stage in ("prepare", "train", "build", "evaluate", "published"):
        assert verify_folder(only(runs, f"{stage}-*")) == []
    assert "SHIP_TUNE" in result.output and "report.html" in result.output
    report = (only(runs, "evaluate-*") / "report.html").read_text()
    assert "spent without learning" in report and "after the best step" in report
    assert "<svg" in report and not re.search(r'(?:src|href)="https?://', report), "one file, nothing from outside"


def test_the_look_at_the_test_rows_is_entered_beside_the_project_file(shipped):
    path, _ = shipped
    looks = [json.loads(line) for line in path.with_suffix(".ledger.jsonl").read_text().splitlines()]
    assert len(looks) == 1, "a fresh output_dir must not forget it"


def test_the_published_folder_is_what_was_trained(shipped):
    path, _ = shipped
    runs = path.parent / "runs"
    published, base = only(runs, "published-*"), re.search(r'base: "(.+?)"', path.read_text()).group(1)
    assert {p.name for p in published.iterdir()} >= {"merged", "adapter", "model-f16.gguf", "README.md", "parity.json"}
    model = load_model(base)
    load_adapter(model, published / "adapter")
    ids = list(range(3, 40))
    ours = model_logits(model.eval())(ids, range(len(ids)))
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(published / "merged", dtype=torch.float32)
        theirs = plain(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_second_run_reuses_every_stage_and_says_so(shipped, luthier):
    path, _ = shipped
    before = sorted(p.name for p in (path.parent / "runs").iterdir())
    result = luthier("run", "-c", path)
    assert result.exit_code == 0 and result.output.count("unchanged, reusing") == 5
    assert sorted(p.name for p in (path.parent / "runs").iterdir()) == before


def test_a_damaged_publication_is_written_again_and_one_at_a_time(shipped, luthier):
    path, _ = shipped
    published = only(path.parent / "runs", "published-*")
    card = (published / "README.md").read_text()
    (published / "README.md").write_text(card[::-1])
    lock = published.with_name(f".lock-{published.name}")
    with open(lock, "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        refused = luthier("run", "-c", path)
        assert isinstance(refused.exception, ArtifactError) and "another luthier" in str(refused.exception)
    again = luthier("run", "-c", path)
    assert again.exit_code == 0 and "README.md: content differs" in again.output
    assert (published / "README.md").read_text() == card and not lock.exists()


def test_changing_a_knob_rebuilds_only_what_depends_on_it(shipped, luthier):
    path, _ = shipped
    result = luthier("run", "-c", path, "--set", "evaluate.min_effect=0.05")
    assert result.exit_code == 0 and result.output.count("unchanged, reusing") == 3, result.output
    assert "because of evaluate.min_effect: 0.02 -> 0.05" in " ".join(result.output.split()), "and says why"


def test_the_same_weights_built_again_are_no_further_look(shipped, luthier):
    """A stage that was damaged and made again, bit for bit, must not be judged more strictly."""
    path, _ = shipped
    runs, ledger = path.parent / "runs", path.with_suffix(".ledger.jsonl")
    before = [json.loads(line) for line in ledger.read_text().splitlines()]
    (only(runs, "build-*") / "merged" / "model.safetensors").unlink()
    again = luthier("run", "-c", path)
    assert again.exit_code == 0 and "is built again" in again.output
    looks = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert len({look["artefact"] for look in looks}) == len({look["artefact"] for look in before})
    assert looks[-1]["look"] == before[0]["look"]


def test_decide_refuses_a_file_that_the_evaluation_did_not_write(shipped, luthier, tmp_path):
    path, _ = shipped
    folder = sorted((path.parent / "runs").glob("evaluate-*"))[0]
    shutil.copytree(folder, tmp_path / "judged")
    samples = tmp_path / "judged" / "samples.jsonl"
    assert luthier("decide", "--from", samples).exit_code == 0
    samples.write_bytes(samples.read_bytes().replace(b'"answer": "yes"', b'"answer": "no"', 1))
    refused = luthier("decide", "--from", samples)
    assert isinstance(refused.exception, EvaluateError) and "luthier verify" in refused.exception.hint
    shutil.copy(samples, tmp_path / "samples.jsonl")
    assert luthier("decide", "--from", tmp_path / "samples.jsonl").exit_code == 0


def test_decide_reproduces_the_verdict_byte_for_byte(shipped, luthier, tmp_path):
    path, _ = shipped
    judged = next(p for p in (path.parent / "runs").glob("evaluate-*"))
    result = luthier("decide", "--from", judged / "samples.jsonl", "-o", tmp_path / "again.json")
    assert result.exit_code == 0
    assert (tmp_path / "again.json").read_bytes() == (judged / "verdict.json").read_bytes()


def test_a_broken_adapter_is_blocked(shipped, luthier, tmp_path):
    path, _ = shipped
    good = only(path.parent / "runs", "train-*") / "adapter"
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_text((good / "adapter_config.json").read_text())
    tensors = load_file(good / "adapter_model.safetensors")
    torch.manual_seed(0)
    save_file({k: torch.randn_like(v) for k, v in tensors.items()}, broken / "adapter_model.safetensors")
    result = luthier("evaluate", "-c", path, "--adapter", broken)
    assert result.exit_code in (11, 12), result.output
    assert luthier("evaluate", "-c", path, "--adapter", good).exit_code == 0, "the same road lets the good one pass"


def test_a_base_that_only_needed_the_right_prompt_ends_in_10(tmp_path, toy_base, luthier):
    path = write_project(tmp_path, toy_base, make_texts(500, seed=8), evaluate=', instructions: ["", "label"]')
    result = luthier("run", "-c", path, *NO_LEARNING)
    assert result.exit_code == 10, result.output
    assert not list((tmp_path / "runs").glob("published-*")), "nothing is published when the tune does not ship"


def test_shuffled_labels_end_in_11(tmp_path, toy_base, luthier):
    rng = random.Random(0)
    pairs = [(text, rng.choice(["yes", "no"])) for text, _ in make_texts(800, seed=9)]
    path = write_project(tmp_path, toy_base, pairs)
    # Base and tune both guess between two labels; at 280 rows only the absence of a large gain can be shown.
    result = luthier("run", "-c", path, "--set", "data.system=label", "--set", "evaluate.min_effect=0.2")
    assert result.exit_code == 11, result.output


def test_a_small_test_set_ends_in_12(tmp_path, toy_base, luthier):
    result = luthier("run", "-c", write_project(tmp_path, toy_base, make_texts(60, seed=10)))
    assert result.exit_code == 12, result.output
    assert "INCONCLUSIVE" in result.output


def test_the_same_model_twice_does_not_ship(tmp_path, toy_base, luthier):
    """A/A with sampled decoding: base against itself under another seed."""
    path = write_project(tmp_path, toy_base, make_texts(300, seed=11))
    result = luthier("evaluate", "-c", path, "--model", toy_base, "--set", "evaluate.temperature=1.0")
    assert result.exit_code in (11, 12), result.output


def test_replayed_rows_train_and_never_stand_for_the_task(tmp_path, toy_base, luthier):
    """Documents, which hold no prompt, and conversations, which could be taken for shots; more than task rows."""
    path = write_project(tmp_path, toy_base, make_texts(60, seed=12))
    told = [{"text": f"{text} was told of {number} hills"} for number, (text, _) in enumerate(make_texts(60, seed=13))]
    said = [{"prompt": f"say {text}", "completion": "chatter"} for text, _ in make_texts(60, seed=14)]
    for name, rows in (("told", told), ("said", said)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = (
        "data.mix.replay.files=[told.jsonl, said.jsonl]",
        "data.mix.replay.share=0.75",
        "evaluate.prompt.shots=[4]",
    )
    arguments = [part for setting in settings for part in ("--set", setting)]
    result = luthier("evaluate", "-c", path, "--model", toy_base, *arguments)
    assert result.exit_code in (11, 12), result.output
    folder = only(tmp_path / "runs", "prepare-*")
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    mixed = [row["source"] for row in rows if row["is_replay"]]
    assert len(mixed) == 90 and set(mixed) == {"told.jsonl", "said.jsonl"}
    lines = (only(tmp_path / "runs", "evaluate-*") / "samples.jsonl").read_text().splitlines()
    header = json.loads(lines[0])
    assert len(header["winning_prompt"]) >= 8 and header["data"]["num_train"] == 30
    assert "chatter" not in json.dumps(header["winning_prompt"])


def test_two_tunes_of_two_seeds_do_not_ship_over_one_another(shipped, tmp_path, toy_base, luthier):
    """A/A of training: the second tune is judged with the first one as its base."""
    path, _ = shipped
    first = only(path.parent / "runs", "build-*") / "merged"
    other = write_project(tmp_path / "other", toy_base, make_texts(500, seed=7))
    assert luthier("build", "-c", other, "--set", "train.seed=1").exit_code == 0
    second = only(tmp_path / "other/runs", "build-*") / "merged"
    judged = write_project(tmp_path / "judged", first, make_texts(500, seed=7))
    result = luthier("evaluate", "-c", judged, "--model", second)
    assert result.exit_code in (11, 12), result.output


def test_no_dev_split_is_refused_or_forfeits_the_verdict(tmp_path, toy_base, luthier):
    path = write_project(tmp_path, toy_base, make_texts(120, seed=12))
    no_dev = ("--set", "data.split={train: 0.6, dev: 0, test: 0.4}")
    refused = luthier("run", "-c", path, *no_dev)
    assert isinstance(refused.exception, LuthierError) and "dev" in str(refused.exception)
    assert "allow_no_dev" in refused.exception.hint
    accepted = luthier("run", "-c", path, *no_dev, "--set", "data.allow_no_dev=true")
    assert accepted.exit_code == 12, accepted.output


def test_test_rows_that_stand_in_train_are_removed_from_train_and_listed(tmp_path, toy_base, luthier):
    pairs = make_texts(200, seed=13)
    path = write_project(tmp_path, toy_base, pairs)
    write_csv(tmp_path / "sealed.csv", pairs[:60])
    result = luthier("prepare", "-c", path, "--set", "data.test=[sealed.csv]")
    assert result.exit_code == 0, result.output
    prepared = only(tmp_path / "runs", "prepare-*")
    summary = json.loads((prepared / "summary.json").read_text())
    assert len(summary["leaks"]) == 60 and summary["splits"]["test"] == 60
    tested = {json.loads(line)["messages"][0]["content"] for line in (prepared / "test.jsonl").open()}
    trained = {json.loads(line)["messages"][0]["content"] for line in (prepared / "train.jsonl").open()}
    assert not tested & trained


def test_mask_and_chat_verbs(shipped, luthier):
    path, _ = shipped
    shown = luthier("mask", "-c", path, "--rows", "1")
    assert shown.exit_code == 0 and re.search(r"\[(yes|no|y|n)", shown.output), shown.output
    assert all(f"P{i}" in shown.output for i in range(1, 9))
    answered = luthier("chat", "-c", path, "-m", "zaba red kobo", "--max-new-tokens", "4")
    assert answered.exit_code == 0 and "yes" in answered.output, answered.output


def cli(*arguments, cwd=None):
    return subprocess.Popen(
        [sys.executable, "-m", "luthier", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )  # fmt: skip


def test_ctrl_c_saves_says_how_to_go_on_and_the_next_run_equals_an_uninterrupted_one(tmp_path, toy_base, luthier):
    slow = ("--set", "train.num_epochs=20", "--set", "adapter.lora_dropout=0.1")
    path = write_project(tmp_path / "a", toy_base, make_texts(300, seed=14))
    child = cli("train", "-c", path, *slow)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list((tmp_path / "a/runs").glob("train-*.work/metrics.jsonl")):
        time.sleep(0.05)
    time.sleep(0.5)
    child.send_signal(signal.SIGINT)
    output = child.communicate(timeout=120)[0]
    assert child.returncode == Interrupted.exit_code, output
    assert "run the same command again" in output and "Traceback" not in output
    assert luthier("train", "-c", path, *slow).exit_code == 0
    whole = write_project(tmp_path / "b", toy_base, make_texts(300, seed=14))
    assert luthier("train", "-c", whole, *slow).exit_code == 0
    name = "adapter/adapter_model.safetensors"
    resumed, straight = (load_file(only(tmp_path / side / "runs", "train-*") / name) for side in "ab")
    assert all(torch.equal(resumed[key], straight[key]) for key in straight)


WRONG = [
    (("run", "-c", "none.yaml"), 2, "no such file"),
    (("run", "--config"), 2, "requires an argument"),
    (("rnu",), 2, "No such command"),
    (("decide", "--from", "none.jsonl"), (1, 2), "none.jsonl"),
    (("chat", "--model", "none", "-m", "hi"), 2, "--model none: no such folder"),
    (("lr-probe", "-c", "luthier.yaml", "--to", "inf"), 2, "no range"),
    (("init", "none.csv", "-o", "new.yaml"), 2, "none.csv"),
    (("evaluate", "-c", "luthier.yaml", "--adapter", "none"), (1, 2), "no such folder"),
    (("run", "-c", "luthier.yaml", "--set", "model.base=none/model"), 2, "hub"),
    (("run", "-c", "luthier.yaml", "--set", "data.train=[none.csv]"), 2, "none.csv"),
    (("run", "-c", "luthier.yaml", "--set", "data.completion='{labl}'"), 2, "labl"),
    (("run", "-c", "luthier.yaml", "--set", "adapter.lora_target_modules=[q_prj]"), 2, "q_proj"),
    (("run", "-c", "luthier.yaml", "--set", "adapter.lora_r=65"), 2, "width"),
    (("run", "-c", "luthier.yaml", "--set", "train.sequence_len=16"), 2, "sequence_len"),
]


@pytest.mark.parametrize(("arguments", "code", "words"), WRONG, ids=[" ".join(w[0][-2:]) for w in WRONG])
def test_wrong_use_ends_in_words_not_in_a_traceback(tmp_path, toy_base, arguments, code, words, monkeypatch, capfd):
    from luthier import cli as module

    write_project(tmp_path, toy_base, make_texts(120, seed=15))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["luthier", *arguments])
    with pytest.raises(SystemExit) as ended:
        module.main()
    said = capfd.readouterr()
    assert ended.value.code in (code if isinstance(code, tuple) else (code,)), said
    assert words in said.err + said.out and "Traceback" not in said.err and "internal:" not in said.err


def test_help_is_quick_to_load_and_never_imports_torch():
    code = "import sys, luthier.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[2]).returncode == 0


def test_verbs_that_touch_no_weights_never_import_torch(tmp_path, toy_base):
    project = write_project(tmp_path, toy_base, make_texts(60, seed=2))
    code = (
        "import sys, luthier.cli as cli\n"
        "for verb in ('prepare', 'mask', 'plan'):\n"
        f"    cli.app([verb, '-c', {str(project)!r}], standalone_mode=False)\n"
        "    assert 'torch' not in sys.modules, verb\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[2], capture_output=True)
    assert done.returncode == 0, done.stderr

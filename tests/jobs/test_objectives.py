"""Every objective through the CLI: from a project file to an adapter, its held-out figure, and what is refused."""

from __future__ import annotations

import json
import math
import random
import re
import shutil

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from luthier.adapters.score_head import load_score_head
from luthier.adapters.stored import load_adapter
from luthier.bases.resolve import resolve_base
from luthier.data.pack import at_last_token, make_batch
from luthier.data.stored import read_encoded
from luthier.jobs import session
from luthier.jobs import train as job
from luthier.models.load import load_model
from luthier.store.publish import digest_file, render_manifest, seal
from tests.tiny import make_tiny_base

_SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]


def words(rng: random.Random, count: int) -> str:
    return " ".join("".join(rng.choices(_SYLLABLES, k=2)) for _ in range(count))


def pairs(count: int, seed: int = 0) -> list[dict]:
    """The good answer says yes, the bad one no; the good one is not the longer one."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        chosen, rejected = f"yes {words(rng, 1)}", f"no {words(rng, 2)}"
        made.append({"prompt": words(rng, 10), "chosen": chosen, "rejected": rejected, "by": rng.randint(1, 3)})
    return made


def judged(count: int) -> list[dict]:
    return [
        {"prompt": pair["prompt"], "completion": pair["chosen" if i % 2 else "rejected"], "label": bool(i % 2)}
        for i, pair in enumerate(pairs(count))
    ]


def classed(count: int) -> list[dict]:
    return [
        {"prompt": f"{pair['prompt']} {'red red' if i % 2 else 'blue blue'}", "completion": str(10 * (i % 2))}
        for i, pair in enumerate(pairs(count))
    ]


def documents(count: int) -> list[dict]:
    rng = random.Random(1)
    return [{"text": words(rng, rng.choice([10, 20, 90]))} for _ in range(count)]


def conversations(count: int) -> list[dict]:
    made = []
    for pair in pairs(count):
        turns = (("user", pair["prompt"]), ("assistant", pair["rejected"]), ("user", "again"), ("assistant", "yes"))
        made.append({"messages": [{"role": role, "content": said} for role, said in turns]})
    return made


@pytest.fixture
def project(tmp_path, tiny_base):
    """project(rows, loss) -> project file over those rows."""

    def write(rows: list[dict], loss: str, extra: str = ""):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        path = tmp_path / "luthier.yaml"
        path.write_text(
            f'model: {{base: "{tiny_base}", dtype: float32}}\n'
            "data: {train: [rows.jsonl], split: {train: 0.7, dev: 0.2, test: 0.1}}\n"
            f"loss: {loss}\n"
            + ("" if "adapter:" in loss else "adapter: {lora_r: 8, lora_alpha: 16}\n")
            + "train: {sequence_len: 160, micro_batch_tokens: 1024, learning_rate: 5e-3, num_threads: 1}\n"
            + extra
        )
        return path

    return write


def trained(path) -> tuple:
    """(folder, facts, train records, dev records) of the one training that stands."""
    (folder,) = path.parent.glob("runs/train-*")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    facts = json.loads((folder / "manifest.json").read_text())["facts"]
    return folder, facts, *([line for line in lines if line["kind"] == kind] for kind in ("train", "dev"))


WORKS = [
    # rows, its section, the dev figure that must move beyond its interval (and in which direction)
    pytest.param(
        conversations, "{earlier_turns: 0.3, label_smoothing: 0.1, neftune_alpha: 2, kl_to_base: 0.05}", "", id="sft"
    ),
    pytest.param(documents, "{kind: continued, chunk_overlap: 16}", "", id="continued"),
    pytest.param(pairs, "{kind: orpo}", "reward_accuracy", id="orpo"),
    pytest.param(pairs, "{kind: simpo}", "reward_accuracy", id="simpo", marks=pytest.mark.slow),
    pytest.param(pairs, "{kind: cpo}", "chosen_logp", id="cpo", marks=pytest.mark.slow),
    pytest.param(pairs, "{kind: dpo, variant: ipo}", "reward_margin", id="ipo", marks=pytest.mark.slow),
    pytest.param(judged, "{kind: kto}", "reward_margin", id="kto"),
    pytest.param(pairs, "{kind: reward, margin_column: by}", "reward_margin", id="reward"),
    pytest.param(classed, "{kind: classify}", "accuracy", id="classify"),
    pytest.param(classed, "{kind: regress}", "-absolute_error", id="regress", marks=pytest.mark.slow),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "loss", "figure"), WORKS)
def test_from_project_file_to_adapter_and_the_held_out_figure_moves(project, luthier, rows, loss, figure):
    path = project(rows(100), loss)
    epochs = 6 if "kind: classify" in loss or "kind: regress" in loss else 1 if "kind" in loss else 2
    steep = ("--set", "train.learning_rate=1e-2", "--set", f"train.num_epochs={epochs}")
    result = luthier("train", "-c", path, *steep)
    assert result.exit_code == 0, result.output
    folder, facts, _, dev = trained(path)
    assert bool(facts["dev_before"]) is ("kind" in loss), "sft takes no pass over the dev split before it begins"
    before, after = facts["dev_before"] or dev[0], dev[-1]
    assert after["loss"] < before["loss"]
    if figure:
        name, sign = figure.removeprefix("-"), -1 if figure.startswith("-") else 1
        ends = sorted((sign * after[f"{name}_low"], sign * after[f"{name}_high"]))
        assert ends[0] > sign * before[name], (before, after)
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()


def test_a_task_is_learnt_on_what_continued_pre_training_built(project, luthier, tmp_path):
    """build of a continued run -> its output folder as the next project's base, plan and lineage included."""
    (tmp_path / "first").mkdir()
    path = project(
        documents(60), "{kind: continued, chunk_overlap: 16}", "ship: {formats: []}\noutput_dir: first/runs\n"
    )
    second = path.with_name("second.yaml")
    text = path.read_text().replace("first/runs", "runs").replace("kind: continued, chunk_overlap: 16", "kind: sft")
    second.write_text(re.sub(r'base: "[^"]*"', 'base: "./first/runs"', text).replace("rows.jsonl", "turns.jsonl"))
    (tmp_path / "turns.jsonl").write_text("".join(json.dumps(row) + "\n" for row in conversations(60)))
    early = luthier("train", "-c", second)
    assert "neither an alias" in str(early.exception) and "luthier build" in early.exception.hint
    assert luthier("build", "-c", path).exit_code == 0
    (merged,) = (tmp_path / "first" / "runs").glob("build-*/merged")

    assert luthier("plan", "-c", second).exit_code == 0
    result = luthier("build", "-c", second)
    assert result.exit_code == 0, result.output
    folder, *_ = trained(second)
    pinned = json.loads((folder / "manifest.json").read_text())["provenance"]["base"]
    assert pinned["name"] == merged.relative_to(tmp_path).as_posix()
    assert pinned["digest"] == resolve_base(str(merged)).digest
    peft = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert peft["base_model_name_or_path"] == str(merged.resolve())
    assert luthier("verify", tmp_path / "runs").exit_code == 0
    assert luthier("build", "-c", path, "--set", "train.max_steps=1").exit_code == 0
    again = luthier("build", "-c", second)
    assert again.exit_code != 0 and "2 builds" in str(again.exception)


@pytest.mark.known_bug("DP")
def test_dpo_starts_at_ln_2_shares_prompts_ranks_held_out_pairs_and_keeps_its_reference(project, luthier, tiny_base):
    path = project(pairs(140), "{kind: dpo}")
    result = luthier("train", "-c", path)
    assert result.exit_code == 0, result.output
    assert "need no computing" in result.output, "the sides of a pair share their prompt"
    folder, facts, train, dev = trained(path)
    assert train[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert facts["dev_before"]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert dev[-1]["reward_accuracy_low"] > 0.8 and dev[-1]["reward_margin_low"] > 0
    ranking = facts["ranking"]
    assert ranking["tuned"]["mean"] == dev[-1]["reward_accuracy"] and ranking["pairs"] >= 20
    assert ranking["longer"]["mean"] < 0.2, "the good answers are the shorter ones"
    assert ranking["over_longer"]["low"] > 0 and ranking["kl_per_token"] > 0
    assert "tuned over longer" in " ".join(result.output.split())
    load_adapter(load_model(tiny_base), folder / "adapter")

    # Another beta: the reference is found, not computed again; a reference of another base is noticed.
    (reference,) = path.parent.glob("runs/reference-*")
    shutil.rmtree(folder)
    again = luthier("train", "-c", path, "--set", "loss.beta=0.3", "--set", "train.max_steps=2")
    assert again.exit_code == 0 and f"reusing {reference.name}" in " ".join(again.output.split())
    assert trained(path)[2][0]["loss"] == pytest.approx(math.log(2), abs=3e-6)
    with np.load(reference / "logps.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    np.savez(reference / "logps.npz", rows=arrays["rows"], logps=arrays["logps"] + 1.0)
    damaged = luthier("train", "-c", path, "--set", "loss.beta=0.4", "--set", "train.max_steps=2")
    assert damaged.exit_code == 0 and "is built again" in " ".join(damaged.output.split())


@pytest.mark.known_bug("DP")
def test_a_reference_of_other_weights_is_refused(project, luthier):
    """Its digest holds, but the base says otherwise: as after a change of kernels or of the machine."""
    path = project(pairs(60), "{kind: dpo}")
    assert luthier("train", "-c", path, "--set", "train.max_steps=1").exit_code == 0
    (reference,) = path.parent.glob("runs/reference-*")
    with np.load(reference / "logps.npz") as stored:
        rows, logps = stored["rows"], stored["logps"]
    np.savez(reference / "logps.npz", rows=rows, logps=logps * 1.01)
    manifest = json.loads((reference / "manifest.json").read_text())
    for entry in manifest["files"]:
        entry["sha256"] = digest_file(reference / entry["name"])
        entry["size_bytes"] = (reference / entry["name"]).stat().st_size
    (reference / "manifest.json").write_text(render_manifest(manifest | {"seal": seal(manifest)}))
    result = luthier("train", "-c", path, "--set", "loss.beta=0.2", "--set", "train.max_steps=1")
    assert result.exit_code != 0 and "has the log-probability" in " ".join(str(result.exception).split())


def test_a_resumed_dpo_run_ends_bit_for_bit_the_same(project, luthier, monkeypatch):
    path = project(pairs(80), "{kind: dpo}", "")
    assert luthier("train", "-c", path, "--set", "output_dir=whole").exit_code == 0
    real = job.train_loop

    def stopped(*args, **kwargs):
        asked = iter([False, False, True])
        return real(*args, **{**kwargs, "stop": lambda: next(asked, True)})

    monkeypatch.setattr(job, "train_loop", stopped)
    assert luthier("train", "-c", path).exit_code != 0
    monkeypatch.setattr(job, "train_loop", real)
    assert luthier("train", "-c", path).exit_code == 0
    weights = [
        next(path.parent.glob(f"{out}/train-*")) / "adapter" / "adapter_model.safetensors" for out in ("whole", "runs")
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_reward_models_head_loads_in_transformers_and_peft(project, luthier, tiny_base):
    """The scores of prompts + answers, from PEFT's own loader, are ours."""
    path = project(pairs(60), "{kind: reward}")
    assert luthier("train", "-c", path).exit_code == 0
    folder = trained(path)[0] / "adapter"
    theirs = AutoModelForSequenceClassification.from_pretrained(tiny_base, num_labels=1, pad_token_id=0)
    theirs = PeftModel.from_pretrained(theirs, folder).eval()
    (prepared,) = path.parent.glob("runs/prepare-*")
    rows = read_encoded(prepared, "dev")
    ours = load_model(tiny_base)
    load_score_head(ours, folder)
    with torch.no_grad():
        for index in range(5):
            for side in rows[index].sequences:
                got = ours.score(ours.hidden(at_last_token(make_batch([side]))))[0]
                expected = theirs(input_ids=torch.tensor([side.ids])).logits[0]
                torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_distillation_moves_the_student_towards_its_teacher(project, luthier, tmp_path):
    teacher = make_tiny_base(tmp_path / "teacher", seed=7)
    path = project(conversations(100), f'{{kind: distill, teacher: "{teacher}"}}')
    result = luthier("train", "-c", path, "--set", "train.num_epochs=3")
    assert result.exit_code == 0, result.output
    _, facts, _, dev = trained(path)
    assert dev[-1]["loss"] < 0.9 * facts["dev_before"]["loss"]


def alike(count: int) -> list[dict]:
    return [{**row, "completion": "x"} for row in classed(count)]


REFUSED = [
    # rows, loss section, what is said
    (pairs, "{kind: orpo, reference: base}", "kind orpo has no reference model"),
    (pairs, "{kind: sft, beta: 0.1}", "kind sft does not read beta"),
    (pairs, "{kind: dpo, variant: ipo, label_smoothing: 0.1}", "label_smoothing is not read by variant ipo"),
    (pairs, "{kind: sft}", "its rows are preference data"),
    (conversations, "{kind: dpo}", "only one side"),
    (pairs, "{kind: kto}", "no label"),
    (lambda n: [{**row, "label": True} for row in judged(n)], "{kind: kto}", "kto learns from good and bad answers"),
    (conversations, "{kind: continued}", "not a plain text"),
    (documents, "{kind: continued, chunk_overlap: 160}", "loss.chunk_overlap: 160 is not below"),
    (pairs, "{kind: reward, margin_column: nope}", "column 'nope' of loss.margin_column is 'None', expected a number"),
    (pairs, "{kind: dpo}\nadapter: {method: full}", "compares with the base"),
    (pairs, "{kind: reward}\nadapter: {method: full}", "a score head stands beside an adapter"),
    (conversations, "{kind: distill}", "distill needs a teacher"),
    (alike, "{kind: classify}", "every training row has the class"),
    (alike, "{kind: regress}", "the answer is 'x', expected a number"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "loss", "said"), REFUSED, ids=[case[2][:30] for case in REFUSED])
def test_refused_before_any_weight_is_loaded(project, luthier, monkeypatch, rows, loss, said):
    monkeypatch.setattr(session, "load_frozen", lambda *_, **__: pytest.fail("weights were loaded"))
    result = luthier("train", "-c", project(rows(60), loss))
    assert result.exit_code != 0 and said in " ".join(str(result.exception).split()), result.exception


def test_a_teacher_with_another_tokenizer_is_refused(project, luthier, tmp_path):
    teacher = make_tiny_base(tmp_path / "teacher")
    spec = json.loads((teacher / "tokenizer.json").read_text())
    vocab = spec["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (teacher / "tokenizer.json").write_text(json.dumps(spec))
    result = luthier("train", "-c", project(conversations(60), f'{{kind: distill, teacher: "{teacher}"}}'))
    assert result.exit_code != 0 and "another tokenizer than the base" in str(result.exception)


def test_a_score_head_has_no_build_and_no_verdict(project, luthier):
    path = project(pairs(60), "{kind: reward}")
    for verb in ("run", "build", "evaluate"):
        result = luthier(verb, "-c", path)
        assert result.exit_code != 0 and "trains a score head" in str(result.exception), verb


def test_pairs_that_teach_nothing_are_quarantined_by_name(project, luthier):
    """Equal sides, one side, an empty answer, a prompt beyond the window: each by its reason; the rest is trained."""
    rng = random.Random(5)
    bad = [
        {"prompt": words(rng, 5), "chosen": "Yes  it is", "rejected": "Yes  it is"},
        {"prompt": words(rng, 5), "chosen": "Yes it is", "rejected": "yes it is "},
        {"prompt": words(rng, 5), "chosen": "yes", "rejected": None},
        {"prompt": words(rng, 5), "chosen": "yes", "rejected": "  "},
        {"prompt": words(rng, 200), "chosen": "yes", "rejected": "no"},
    ]
    path = project(pairs(60) + bad, "{kind: dpo}")
    result = luthier("train", "-c", path, "--set", "data.over_length=quarantine", "--set", "train.max_steps=1")
    assert result.exit_code == 0, result.output
    (prepared,) = path.parent.glob("runs/prepare-*")
    entries = [json.loads(line) for line in (prepared / "quarantine.jsonl").read_text().splitlines()]
    found = {entry["line"]: entry["detail"] for entry in entries}
    assert set(range(61, 66)) <= set(found)
    assert "same" in found[61] and "same answer" in found[62]
    assert "rejected" in found[63] and "empty rejected" in found[64] and "over length" in found[65]

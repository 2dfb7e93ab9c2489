"""PPO through the CLI: a reward that rises, credit as the papers give it, exact resume after SIGKILL, a trained reward
model, what is refused.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from luthier.adapters.stored import load_adapter
from luthier.data.stored import read_encoded
from luthier.jobs import session
from luthier.models.load import load_model
from luthier.rollouts.round import read_round
from tests.jobs.signalled import kill_at
from tests.jobs.test_objectives import pairs
from tests.jobs.test_online import ROUND, said, trained, writer
from tests.rollouts.test_advantages import defined
from tests.tiny import make_tiny_base, make_tokenizer

BY_MODEL = ROUND.replace("{regex: 1.0}", '{{regex: 0.5}}, reward_model: "{}", reward_model_weight: 2')


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Random weights, large enough that it can come to prefer some words."""
    return make_tiny_base(tmp_path_factory.mktemp("ppo") / "base", initializer_range=0.1)


@pytest.fixture
def project(tmp_path, base):
    return writer(tmp_path, base)


def rounds_of(folder) -> list:
    return [read_round(path)[0] for path in sorted((folder / "rollouts").iterdir())]


def test_ppo_lifts_the_held_out_reward_beyond_its_interval(project, luthier, base):
    path = project("{kind: ppo}", ROUND, ", num_epochs: 3")
    result = luthier("train", "-c", path)
    assert result.exit_code == 0, said(result)
    folder, facts, log = trained(path)
    best = next(record for record in log["dev"] if record["step"] == facts["best_step"])
    assert best["reward_low"] > facts["dev_before"]["reward_high"], "beyond its interval"
    assert {"value_error", "value_clip_share", "entropy", "policy_kl", "clip_share", "kl"} <= set(log["train"][0])
    assert all(record["policy_kl"] < 1e-9 and not record["value_clip_share"] for record in log["train"])

    rounds = rounds_of(folder)
    assert not any(any(one.values) for one in rounds[0]) and any(any(one.values) for one in rounds[1])
    for answers, record in zip(rounds, log["train"], strict=True):
        credits = []
        for one in answers:
            rewards = [0.05 * (ref - logp) for logp, ref in zip(one.logps, one.ref_logps, strict=True)]
            rewards[-1] += one.reward
            credits.append(defined(rewards, one.values, 1.0, 0.95))
            assert one.returns == pytest.approx(np.add(credits[-1], one.values), abs=1e-9)
        every = np.concatenate(credits)
        white = (every - every.mean()) / every.std(ddof=1)
        assert np.concatenate([one.advantages for one in answers]) == pytest.approx(white, abs=1e-6)
        wrong = np.concatenate([np.subtract(one.values, one.returns) for one in answers])
        assert record["value_error"] == pytest.approx(np.mean(wrong**2), rel=1e-4), "values as the trainer has them"

    checkpoint = load_file(sorted((folder / "checkpoints").glob("step-*"))[-1] / "weights.safetensors")
    assert checkpoint["value_head.weight"].any() and "value_head.bias" in checkpoint, "a resumed run needs it"
    assert not any("value" in name for name in load_file(folder / "adapter" / "adapter_model.safetensors"))
    load_adapter(load_model(base), folder / "adapter")


@pytest.mark.slow
@pytest.mark.parametrize("place", ["models/sampler.py:_choose:15", "engine/checkpoint.py:save:2"])
def test_a_run_that_was_killed_ends_bit_for_bit_as_if_it_were_not(project, luthier, place):
    """By SIGKILL: while the answers of the third round are sampled; between two steps of the second round, before its
    checkpoint is written.
    """
    rollouts = ROUND.replace("prompts: 8", "prompts: 8, inner_epochs: 2, inner_batches: 2")
    path = project("{kind: ppo}", rollouts, ", max_steps: 11, save_steps: 3, logging_steps: 2")
    assert luthier("train", "-c", path, "--set", "output_dir=whole").exit_code == 0
    kill_at(place, "train", "-c", path)
    (work,) = path.parent.glob("runs/train-*.work")
    assert len(list((work / "rollouts").iterdir())) == 2, "it was cut in its middle"
    assert luthier("train", "-c", path).exit_code == 0
    folders = [trained(path, out)[0] for out in ("whole", "runs")]
    names = [f"rollouts/{p.name}" for p in (folders[0] / "rollouts").iterdir()]
    last = sorted((folders[0] / "checkpoints").glob("step-*"))[-1].name
    for name in ("adapter/adapter_model.safetensors", f"checkpoints/{last}/weights.safetensors", *names):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    logs = [
        [{k: v for k, v in record.items() if k != "tokens_per_s"} for kind in log.values() for record in kind]
        for log in (trained(path, out)[2] for out in ("whole", "runs"))
    ]
    assert logs[0] == logs[1]


@pytest.fixture(scope="module")
def judge(tmp_path_factory, base, luthier):
    """judge(loss, rows, on) -> adapter folder; by default of a model taught to score `yes ...` above `no ...`."""

    def train(loss="{kind: reward}", rows=None, on=base):
        folder = tmp_path_factory.mktemp("judge")
        made = pairs(100) if rows is None else rows
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
        path = folder / "luthier.yaml"
        path.write_text(
            f'model: {{base: "{on}", dtype: float32}}\ndata: {{train: [rows.jsonl]}}\nloss: {loss}\n'
            "adapter: {lora_r: 4}\n"
            "train: {sequence_len: 160, micro_batch_tokens: 1024, learning_rate: 1e-2, num_threads: 1}\n"
        )
        result = luthier("train", "-c", path)
        assert result.exit_code == 0, said(result)
        return next(folder.glob("runs/train-*/adapter"))

    return train


@pytest.fixture(scope="module")
def rewarding(judge):
    return judge()


def test_a_reward_models_score_is_a_reward_beside_the_metrics(project, luthier, rewarding, base):
    """As PEFT and transformers score the same tokens; for grpo just as well."""
    path = project("{kind: grpo}", BY_MODEL.format(rewarding), ", max_steps: 2")
    result = luthier("train", "-c", path)
    assert result.exit_code == 0, said(result)
    folder, facts, log = trained(path)
    peer = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=0)
    peer = PeftModel.from_pretrained(peer, rewarding).eval()
    (prepared,) = path.parent.glob("runs/prepare-*")
    prompts = {row.row_id: row.ids for row in read_encoded(prepared, "train")}
    for answers, record in zip(rounds_of(folder), log["rollout"], strict=True):
        for one in answers:
            ids = [*prompts[one.row], *one.ids, *([] if one.finish == "stop" else [2])]
            with torch.no_grad():
                score = peer(input_ids=torch.tensor([ids])).logits.item()
            assert one.parts == {"regex": float("e" in one.text), "reward_model": pytest.approx(score, abs=1e-4)}
            assert one.reward == pytest.approx(0.5 * one.parts["regex"] + 2 * one.parts["reward_model"])
        for name, part in (("reward_regex", "regex"), ("reward_model", "reward_model")):
            assert record[name] == pytest.approx(np.mean([one.parts[part] for one in answers]))
    assert {"reward_regex", "reward_model"} <= set(facts["dev_before"])
    assert len({one.reward for one in rounds_of(folder)[0]}) > 20, "answers differ in their scores"


@pytest.mark.slow
def test_ppo_learns_from_a_reward_model_alone(project, luthier, rewarding):
    """Its scores differ more between prompts than between answers, so many are asked."""
    alone = BY_MODEL.replace("rewards: {{regex: 0.5}}, ", "").replace("dev_prompts: 24", "dev_prompts: 120")
    path = project("{kind: ppo, kl_to_base: 0.01}", alone.format(rewarding), ", num_epochs: 1", rows=400)
    result = luthier("train", "-c", path)
    assert result.exit_code == 0, said(result)
    _, facts, log = trained(path)
    best = next(record for record in log["dev"] if record["step"] == facts["best_step"])
    assert best["reward_low"] > facts["dev_before"]["reward_high"]
    assert best["reward"] == pytest.approx(2 * best["reward_model"]) and "reward_regex" not in best


REFUSED = [
    ({"rollouts": "prompts: 4"}, "loss.kind ppo learns from rewards, and there is none"),
    ({"rollouts": f"{ROUND}, reward_model: nowhere"}, "is no adapter folder"),
    ({"loss": "{kind: sft}", "rollouts": "reward_model: nowhere"}, "loss.kind sft samples no answers"),
    ({"loss": "{kind: ppo, variant: dapo}"}, "kind ppo does not read variant"),
    ({"loss": "{kind: grpo, gae_lambda: 0.9}"}, "kind grpo does not read gae_lambda (read by ppo)"),
    ({"rollouts": ROUND.replace("answers: 8", "answers: 1, resample: 2")}, "with one answer to a prompt no prompt has"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "words_"), REFUSED, ids=[case[1][:30] for case in REFUSED])
def test_refused_before_any_weight_is_loaded(project, luthier, monkeypatch, changes, words_):
    monkeypatch.setattr(session, "load_frozen", lambda *_, **__: pytest.fail("weights were loaded"))
    result = luthier("train", "-c", project(**{"loss": "{kind: ppo}", **changes}))
    assert result.exit_code != 0 and words_ in said(result), said(result)


def test_what_is_no_reward_model_of_this_base_is_refused_before_any_weight_is_loaded(
    project, luthier, monkeypatch, judge, rewarding, tmp_path
):
    """By the manifest beside it; by name and width where the folder was copied out of its stage."""
    other = make_tiny_base(tmp_path / "base", seed=5, initializer_range=0.1)  # the same name, other weights
    spelling = make_tiny_base(tmp_path / "spelling" / "base")
    make_tokenizer(spelling, vocab_size=300)
    numbers = [{"prompt": pair["prompt"], "completion": str(pair["by"])} for pair in pairs(60)]

    def copied(name, score=None, **config):
        """The reward model out of its stage, with another score head or config."""
        folder = Path(shutil.copytree(rewarding, tmp_path / name))
        told = json.loads((folder / "adapter_config.json").read_text()) | config
        (folder / "adapter_config.json").write_text(json.dumps(told))
        tensors = load_file(folder / "adapter_model.safetensors")
        (head,) = (key for key in tensors if "score" in key)
        others = {key: tensor for key, tensor in tensors.items() if key != head}
        changed = others if score is None else others | {head: torch.zeros(score)}
        save_file(tensors if config else changed, folder / "adapter_model.safetensors")
        return folder

    cases = [
        (judge(on=other), "was trained on another base"),
        (judge(on=spelling), "was trained with another tokenizer"),
        (judge("{kind: regress}", numbers), "was trained with loss.kind regress, not reward"),
        (copied("wide", (1, 32)), "has a score head of 32 inputs, and the base is 64 wide"),
        (copied("named", base_model_name_or_path="another-7b"), "was trained on another base: another-7b, and this"),
        (copied("classes", (2, 64)), "has 2 scores, those of a classifier"),
        (copied("spoken"), "has no score head"),
    ]
    monkeypatch.setattr(session, "load_frozen", lambda *_, **__: pytest.fail("weights were loaded"))
    for folder, words_ in cases:
        result = luthier("train", "-c", project("{kind: ppo}", BY_MODEL.format(folder)))
        assert result.exit_code != 0 and words_ in said(result), said(result)

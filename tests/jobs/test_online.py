"""Online objectives through the CLI: a reward that rises, exact resume, rewards that misbehave, what is refused."""

from __future__ import annotations

import contextlib
import json
import random
import time

import pytest
import torch

from luthier.engine import checkpoint
from luthier.graders.grader import Grader
from luthier.graders.registry import GRADERS
from luthier.jobs import session
from luthier.jobs import train as job
from luthier.models.load import load_model
from luthier.models.sampler import LocalSampler
from luthier.rollouts import collect
from luthier.rollouts.round import read_round
from tests.jobs.test_objectives import words
from tests.tiny import make_tiny_base

ROUND = "rewards: {regex: 1.0}, prompts: 8, answers: 8, max_new_tokens: 4, dev_prompts: 24"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Random weights, large enough that it can come to prefer some words."""
    return make_tiny_base(tmp_path_factory.mktemp("online") / "base", initializer_range=0.1)


@pytest.fixture
def project(tmp_path, base):
    return writer(tmp_path, base)


def writer(tmp_path, base):
    """project(loss, rollouts, train) -> project file: prompts to a model of random weights, rewarded for an `e`."""

    def write(loss="{kind: grpo}", rollouts=ROUND, train="", rows=96, longest=12):
        rng = random.Random(0)
        made = [{"prompt": words(rng, longest), "completion": f"yes {words(rng, 1)}"} for _ in range(rows)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
        path = tmp_path / "luthier.yaml"
        path.write_text(
            f'model: {{base: "{base}", dtype: float32}}\n'
            "data: {train: [rows.jsonl], split: {train: 0.6, dev: 0.3, test: 0.1}}\n"
            f"loss: {loss}\nrollouts: {{{rollouts}}}\nadapter: {{lora_r: 8, lora_alpha: 16}}\n"
            "evaluate: {metric: regex, graders: {regex: {pattern: e}}, max_new_tokens: 4, temperature: 1.0}\n"
            "train: {sequence_len: 120, micro_batch_tokens: 700, learning_rate: 2e-2, num_threads: 1, "
            f"lr_scheduler: constant{train}}}\n"
        )
        return path

    return write


def trained(path, out="runs"):
    (folder,) = (one for one in path.parent.glob(f"{out}/train-*") if not one.name.endswith(".work"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    facts = json.loads((folder / "manifest.json").read_text())["facts"]
    return folder, facts, {kind: [x for x in lines if x["kind"] == kind] for kind in ("train", "rollout", "dev")}


def said(result) -> str:
    return " ".join(f"{result.output} {result.exception}".split())


@pytest.mark.parametrize(
    "loss", ["{kind: grpo}", pytest.param("{kind: grpo, variant: dapo, kl_to_base: 0.01}", marks=pytest.mark.slow)]
)
def test_grpo_lifts_the_held_out_reward_beyond_its_interval(project, luthier, loss):
    path = project(loss, train=", num_epochs: 3")
    result = luthier("train", "-c", path)
    assert result.exit_code == 0, said(result)
    folder, facts, log = trained(path)
    best = next(record for record in log["dev"] if record["step"] == facts["best_step"])
    assert best["reward_low"] > facts["dev_before"]["reward_high"], "beyond its interval"
    assert "held-out reward before" in said(result)
    rounds = log["rollout"]
    assert rounds[-1]["reward"] > rounds[0]["reward"] + 0.2 and rounds[0]["answers"] == 64
    assert {"reward_std", "alike_groups", "answer_tokens", "cut_off", "reward_failed", "reward_regex"} <= set(rounds[0])
    assert {"entropy", "policy_kl", "clip_share", "kl"} <= set(log["train"][0])
    learnt = [record for record in log["train"] if "kl" in record]  # a round whose answers are all alike has no step
    assert learnt[0]["kl"] == pytest.approx(0, abs=1e-6) and learnt[-1]["kl"] > 1e-3
    assert all(record["policy_kl"] < 1e-9 for record in learnt), "answers are learnt from as they were sampled"
    answers, _ = read_round(sorted((folder / "rollouts").iterdir())[0])
    assert {answer.reward for answer in answers} == {0.0, 1.0}
    assert all(("e" in answer.text) == bool(answer.reward) for answer in answers)


def test_a_run_goes_on_to_build_verdict_and_report(project, luthier):
    path = project(train=", max_steps: 3")
    ship = (
        "--set",
        "ship.formats=[gguf-f16]",
        "--set",
        "ship.parity_rows=4",
        "--set",
        "evaluate.gates.perplexity=null",
    )
    prompt = (
        "--set",
        "evaluate.prompt.shots=[0]",
        "--set",
        "evaluate.prompt.finalists=1",
        "--set",
        "evaluate.min_pairs=5",
    )
    result = luthier("run", "-c", path, *ship, *prompt)
    (judged,) = path.parent.glob("runs/evaluate-*")
    verdict = json.loads((judged / "verdict.json").read_text())
    assert verdict["exit_code"] == result.exit_code and verdict["verdict"] in said(result)
    assert "reward of a round" in (judged / "report.html").read_text()
    assert "reusing train-" in said(luthier("run", "-c", path, *ship, *prompt)), "nothing is sampled again"


class Cut(BaseException):
    """Ends the process's work as a kill would: nothing gets to tidy up."""


@pytest.mark.parametrize(
    "place", ["asked to stop while sampling", "killed while sampling", "killed between two steps of a round"]
)
def test_a_run_that_was_cut_ends_bit_for_bit_as_if_it_were_not(project, luthier, monkeypatch, place):
    rollouts = ROUND.replace("prompts: 8", "prompts: 8, inner_epochs: 2, inner_batches: 2")
    path = project("{kind: grpo, kl_to_base: 0.05}", rollouts, ", max_steps: 11, save_steps: 3, logging_steps: 2")
    assert luthier("train", "-c", path, "--set", "output_dir=whole").exit_code == 0
    real_sample, real_save, real_loop = LocalSampler.sample_ids, checkpoint.save, job.train_loop
    calls = []

    def sample(self, prompts, *, progress=None, **settings):
        calls.append(len(prompts))

        def told(*args, **figures):
            if len(calls) == 4 and place == "killed while sampling":
                raise Cut
            if progress is not None:
                progress(*args, **figures)

        return real_sample(self, prompts, progress=told, **settings)

    def save(root, state, *args):
        done = real_save(root, state, *args)
        if place == "killed between two steps of a round" and state.step == 6:
            raise Cut
        return done

    def loop(*args, **kwargs):
        if place == "asked to stop while sampling":
            kwargs["stop"] = lambda: len(calls) == 3  # before the run, first round, second round
        return real_loop(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(LocalSampler, "sample_ids", sample)
        patch.setattr(checkpoint, "save", save)
        patch.setattr(job, "train_loop", loop)
        with contextlib.suppress(Cut):
            assert luthier("train", "-c", path).exit_code != 0
    (work,) = path.parent.glob("runs/train-*.work")
    assert work.is_dir(), "it was cut"
    assert luthier("train", "-c", path).exit_code == 0
    folders = [trained(path, out)[0] for out in ("whole", "runs")]
    for name in (
        "adapter/adapter_model.safetensors",
        *(f"rollouts/{p.name}" for p in (folders[0] / "rollouts").iterdir()),
    ):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    logs = [
        [{k: v for k, v in record.items() if k != "tokens_per_s"} for kind in log.values() for record in kind]
        for log in (trained(path, out)[2] for out in ("whole", "runs"))
    ]
    assert logs[0] == logs[1]


def misbehaving(answer: str, reference: str, task) -> float:
    """Raises, hangs or gives no number, by the answer's first letter; else 1 for an `e`."""
    first = answer[:1]
    if first and first in "abc":
        raise RuntimeError("no idea")
    if first and first in "de":
        time.sleep(60)
    return float("nan") if first and first in "fgh" else float("e" in answer)


def test_a_reward_that_raises_hangs_or_gives_no_number_costs_the_answer(project, luthier, monkeypatch):
    monkeypatch.setitem(GRADERS, "exact_match", Grader("exact_match", "graded", misbehaving))
    rollouts = ROUND.replace("regex: 1.0", "exact_match: 1.0").replace("dev_prompts: 24", "dev_prompts: 4")
    path = project("{kind: grpo}", f"{rollouts}, reward_timeout_s: 0.05", ", max_steps: 2")
    result = luthier("train", "-c", path)
    assert result.exit_code == 0, said(result)
    folder, _, log = trained(path)
    for number, record in enumerate(log["rollout"]):
        answers, _ = read_round(sorted((folder / "rollouts").iterdir())[number])
        assert record["reward_failed"] == record["answers"] - len(answers) > 0
        assert not any(answer.text[:1] and answer.text[:1] in "abcdefgh" for answer in answers)
    for words_ in ("no idea", "no answer within 0.05 s", "it gave nan", "answers were left out, without a reward"):
        assert words_ in said(result)


def test_a_constant_reward_is_told_then_stops_the_run_with_its_figure(project, luthier):
    path = project()
    result = luthier("train", "-c", path, "--set", "evaluate.graders.regex.pattern=nothing has this")
    assert result.exit_code != 0
    assert "each of the first 64 answers got the reward 0" in said(result), "a warning after the first round"
    assert "each of the first 192 answers got the reward 0" in str(result.exception)
    again = luthier("train", "-c", path, "--set", "evaluate.graders.regex.pattern=nothing has this")
    assert "each of the first 192 answers got the reward 0" in str(again.exception), "it does not go on either"


def test_a_reward_that_always_fails_stops_the_run(project, luthier, monkeypatch):
    monkeypatch.setitem(GRADERS, "exact_match", Grader("exact_match", "graded", lambda *_: 1 / 0))
    result = luthier("train", "-c", project("{kind: grpo}", ROUND.replace("regex", "exact_match")))
    assert result.exit_code != 0 and "64 of 64 times: exact_match: ZeroDivisionError" in said(result)


def test_dynamic_sampling_leaves_out_groups_whose_answers_are_alike(project, luthier):
    path = project(
        "{kind: grpo, variant: dapo}", f"{ROUND}, resample: 3".replace("answers: 8", "answers: 2"), ", max_steps: 3"
    )
    assert luthier("train", "-c", path).exit_code == 0
    folder, _, log = trained(path)
    for number, record in enumerate(log["rollout"]):
        answers, _ = read_round(sorted((folder / "rollouts").iterdir())[number])
        assert record["answers"] > 16, "more prompts were asked than are learnt from"
        assert 0 < len(answers) <= 16 and all(answer.advantages[0] for answer in answers)


def test_overlong_answers_are_compared_with_but_not_learnt_from(project, luthier):
    path = project("{kind: grpo}", f"{ROUND}, drop_overlong: true", ", max_steps: 2")
    assert luthier("train", "-c", path).exit_code == 0
    _, _, log = trained(path)
    assert all(record["cut_off"] > 0.9 for record in log["rollout"]), "random weights hardly ever stop"
    assert sum(record["num_trained_tokens"] for record in log["train"]) < 30


REFUSED = [
    ({"rollouts": "prompts: 4"}, "learns from rewards, and there is none"),
    ({"rollouts": ROUND.replace("answers: 8", "answers: 1")}, "one answer to a prompt has no other"),
    ({"rollouts": ROUND.replace("regex", "niceness")}, "expected 'exact_match'"),
    ({"rollouts": ROUND.replace("regex: 1.0", "regex: 0")}, "every reward has the weight 0"),
    ({"rollouts": ROUND.replace("regex", "json_exact")}, "compares with answers that are JSON objects"),
    ({"rollouts": ROUND.replace("max_new_tokens: 4", "max_new_tokens: 120")}, "leaves no room for a prompt"),
    ({"rollouts": f"{ROUND}, inner_batches: 9"}, "is more than prompts"),
    ({"loss": "{kind: sft}"}, "loss.kind sft samples no answers"),
    ({"loss": "{kind: grpo, variant: ipo}"}, "variant ipo is none of grpo"),
    ({"loss": "{kind: grpo, beta: 0.1}"}, "kind grpo does not read beta"),
    ({"train": ", gradient_accumulation_steps: 2"}, "is as large as rollouts.prompts"),
    ({"longest": 60}, "96 x prompt beyond the window"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "words_"), REFUSED, ids=[case[1][:30] for case in REFUSED])
def test_refused_before_any_weight_is_loaded(project, luthier, monkeypatch, changes, words_):
    monkeypatch.setattr(session, "load_frozen", lambda *_, **__: pytest.fail("weights were loaded"))
    result = luthier("train", "-c", project(**changes))
    assert result.exit_code != 0 and words_ in said(result), said(result)


def test_prompts_beyond_the_window_are_set_aside_by_name(project, luthier):
    path = project(train=", max_steps: 1")
    with open(path.parent / "rows.jsonl", "a") as file:
        file.write(json.dumps({"prompt": words(random.Random(9), 60), "completion": "yes"}) + "\n")
    assert luthier("train", "-c", path).exit_code == 0
    (prepared,) = path.parent.glob("runs/prepare-*")
    entries = [json.loads(line) for line in (prepared / "quarantine.jsonl").read_text().splitlines()]
    assert [(e["line"], "prompt beyond the window" in e["detail"]) for e in entries] == [(97, True)]


def test_the_rows_of_a_prompt_stay_together_and_share_it(project, luthier, monkeypatch):
    """Every group of a step in one micro-batch, its prompt computed once."""
    seen = []
    real = collect.Rollouts.lay_out

    def lay_out(self, rows):
        batch = real(self, rows)
        seen.append((batch, [row.row_id for row in rows]))
        return batch

    monkeypatch.setattr(collect.Rollouts, "lay_out", lay_out)
    tight = ("--set", "train.micro_batch_tokens=190")  # a group, and room for a part of another
    assert luthier("train", "-c", project(train=", max_steps: 1"), *tight).exit_code == 0
    steps = [(batch, names) for batch, names in seen if not any("rehearsed" in name for name in names)]
    homes = [(name.rsplit("/", 1)[0], place) for place, (_, names) in enumerate(steps) for name in names]
    assert len({row for row, _ in homes}) == 8 == len(set(homes))
    assert all(len(batch.ids_T) < 0.5 * batch.num_represented for batch, _ in steps)


def test_a_lost_round_in_the_middle_of_its_steps_is_refused(project, luthier, monkeypatch):
    rollouts = ROUND.replace("prompts: 8", "prompts: 8, inner_epochs: 4")
    path = project("{kind: grpo}", rollouts, ", max_steps: 8, save_steps: 1")
    real = checkpoint.save

    def save(root, state, *args):
        done = real(root, state, *args)
        if state.step == 6:  # the second of the second round's four steps
            raise Cut
        return done

    with monkeypatch.context() as patch, contextlib.suppress(Cut):
        patch.setattr(checkpoint, "save", save)
        luthier("train", "-c", path)
    (work,) = path.parent.glob("runs/train-*.work")
    for kept in (work / "rollouts").iterdir():
        kept.write_text(kept.read_text().replace('"reward": 1.0', '"reward": 0.5', 1))
    result = luthier("train", "-c", path)
    assert result.exit_code != 0 and "the answers of this round are gone" in said(result)


def test_sampler_gives_the_log_probabilities_of_what_it_drew(base):
    """Against the definition, at another temperature."""
    model = load_model(base)
    sampler = LocalSampler(model, encode=list, decode=str, stop_ids=[2], name="m")
    (one,) = sampler.sample_ids([[5, 6, 7]], max_new_tokens=5, temperature=0.7, seed=1)
    ids = [5, 6, 7, *one.ids]
    for place, (token, logp) in enumerate(zip(one.ids, one.logps, strict=True), start=3):
        session = model.session(num_slots=1, capacity=20, prefix=(), length_class=0)
        logits = session.fill([0], [ids[:place]])[0].double() / 0.7
        assert logp == pytest.approx(torch.log_softmax(logits, -1)[token].item(), abs=1e-5)

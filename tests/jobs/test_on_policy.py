"""On-policy distillation through the CLI: a student that nears its teacher in its own answers, exact resume after
SIGKILL, the share of given answers, what is refused.
"""

from __future__ import annotations

import json

import pytest
import torch

from luthier.adapters.stored import load_adapter
from luthier.bases.tokenizer import Tokenizer
from luthier.chat.codec import ChatCodec
from luthier.data.stored import read_encoded, read_rows
from luthier.jobs import session
from luthier.jobs.local import sampler_of
from luthier.models.load import load_model
from luthier.rollouts.round import read_round
from tests.jobs.signalled import kill_at
from tests.jobs.test_online import ROUND, said, trained, writer
from tests.tiny import make_tiny_base, make_tokenizer

OWN = ROUND.replace("rewards: {regex: 1.0}, ", "").replace("answers: 8", "answers: 4")
ONE = OWN.replace("answers: 4", "answers: 1")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(student, teacher): random weights, large enough that both prefer some words, not the same ones."""
    root = tmp_path_factory.mktemp("on-policy")
    return [make_tiny_base(root / name, seed=seed, initializer_range=0.1) for name, seed in (("base", 0), ("wise", 7))]


@pytest.fixture
def project(tmp_path, folders):
    write = writer(tmp_path, folders[0])

    def made(more="", rollouts=OWN, train="", teacher=folders[1], **settings):
        return write(f'{{kind: gkd, teacher: "{teacher}"{more}}}', rollouts, train, **settings)

    return made


def rounds_of(folder) -> list:
    kept = [read_round(path) for path in sorted((folder / "rollouts").iterdir())]
    return [answers for answers, _ in filter(None, kept)]


def kl_by_hand(student, teacher, prompt, ids) -> float:
    """Mean over an answer's tokens of KL(student || teacher), from whole distributions in float64."""
    row = torch.tensor([*prompt, *ids])
    logps = []
    for model in (student, teacher):
        one = model.session(num_slots=1, capacity=len(row) + 1, prefix=(), length_class=0)
        logits = [one.fill([0], [row[: len(prompt)].tolist()])[0]]
        logits += [one.step([token])[0] for token in row[len(prompt) : -1].tolist()]
        logps.append(torch.log_softmax(torch.stack(logits).double(), -1))
    return (logps[0].exp() * (logps[0] - logps[1])).sum(-1).mean().item()


@pytest.mark.parametrize(
    "more", ["", pytest.param(", divergence: js, js_beta: 0.9, on_policy: 0.5", marks=pytest.mark.slow)]
)
def test_the_student_nears_its_teacher_beyond_the_interval(project, luthier, folders, more):
    path = project(more, ONE if "on_policy" in more else OWN, ", num_epochs: 3")
    result = luthier("train", "-c", path)
    assert result.exit_code == 0, said(result)
    folder, facts, log = trained(path)
    before, best = facts["dev_before"], next(r for r in log["dev"] if r["step"] == facts["best_step"])
    assert best["teacher_kl_high"] < before["teacher_kl_low"], "beyond its interval"
    assert best["teacher_kl"] == min(record["teacher_kl"] for record in log["dev"]), "less is better"
    assert "KL from the teacher in its own answers before" in said(result)

    student, teacher = (load_model(one) for one in folders)
    (prepared,) = path.parent.glob("runs/prepare-*")
    prompts = {row.row_id: row.ids for row in read_encoded(prepared, "train")}
    codec = ChatCodec(Tokenizer.load(folders[0]))
    dev = read_rows(prepared, "dev")[:24]
    own = sampler_of(student, codec, "again", batch_size=8)
    own = own.sample([row.prompt for row in dev], max_new_tokens=4, temperature=1.0, seed=0)
    told = [
        kl_by_hand(student, teacher, codec.prompt_ids(row.prompt), one.ids) for row, one in zip(dev, own, strict=True)
    ]
    assert before["teacher_kl"] == pytest.approx(sum(told) / len(told), rel=1e-4), "by the definition"
    first = rounds_of(folder)[0]
    if not more:  # what the first step saw is the mean over the tokens of the first round
        seen = [kl_by_hand(student, teacher, prompts[one.row], one.ids) * len(one.ids) for one in first]
        assert log["train"][0]["loss"] == pytest.approx(sum(seen) / sum(len(one.ids) for one in first), rel=1e-5)
    load_adapter(student, folder / "adapter")
    last = rounds_of(folder)[-1]
    told = [kl_by_hand(student, teacher, prompts[one.row], one.ids) for one in last if one.finish != "given"]
    assert sum(told) / len(told) < before["teacher_kl_low"], "by the definition, on answers it gave itself"
    assert {"answers", "answer_tokens", "cut_off"} <= set(log["rollout"][0]) and "reward" not in log["rollout"][0]


def test_some_prompts_keep_the_answer_of_their_row(project, luthier, folders):
    path = project(", on_policy: 0.5", ONE, ", max_steps: 6")
    assert luthier("train", "-c", path).exit_code == 0
    folder, _, log = trained(path)
    (prepared,) = path.parent.glob("runs/prepare-*")
    rows = {row.id: row for row in read_rows(prepared, "train")}
    codec = ChatCodec(Tokenizer.load(folders[0]))
    answers = [one for answers in rounds_of(folder) for one in answers]
    given = [one for one in answers if one.finish == "given"]
    assert len(answers) == 48 and 12 < len(given) < 36
    assert [record["given"] for record in log["rollout"]] == [
        sum(one.finish == "given" for one in answers) for answers in rounds_of(folder)
    ]
    for one in given:
        ids, start = codec.encode_answer(rows[one.row].prompt, rows[one.row].answer)
        assert list(one.ids) == ids[start:][:4] and one.text == rows[one.row].answer
    own = [one for one in answers if one.finish != "given"]
    assert not any(one.ids == given[0].ids for one in own) and all(len(one.logps) == len(one.ids) for one in own)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["models/sampler.py:_choose:15", "engine/checkpoint.py:save:2"])
def test_a_run_that_was_killed_ends_bit_for_bit_as_if_it_were_not(project, luthier, place):
    """By SIGKILL: while the answers of the third round are sampled; between two steps of the second round."""
    rollouts = ONE.replace("prompts: 8", "prompts: 8, inner_epochs: 2, inner_batches: 2")
    path = project(", on_policy: 0.7", rollouts, ", max_steps: 11, save_steps: 3, logging_steps: 2")
    assert luthier("train", "-c", path, "--set", "output_dir=whole").exit_code == 0
    kill_at(place, "train", "-c", path)
    (work,) = path.parent.glob("runs/train-*.work")
    assert list((work / "rollouts").iterdir()), "it was cut in its middle"
    assert luthier("train", "-c", path).exit_code == 0
    (whole, _, one), (folder, _, other) = trained(path, "whole"), trained(path)
    for name in ("adapter/adapter_model.safetensors", *(f"rollouts/{p.name}" for p in (whole / "rollouts").iterdir())):
        assert (whole / name).read_bytes() == (folder / name).read_bytes(), name
    logs = [
        [{k: v for k, v in record.items() if k != "tokens_per_s"} for kind in log.values() for record in kind]
        for log in (one, other)
    ]
    assert logs[0] == logs[1]


def test_a_teacher_that_changed_is_another_run(project, luthier, tmp_path):
    teacher = make_tiny_base(tmp_path / "wise", seed=7)
    path = project(train=", max_steps: 1", teacher=teacher)
    assert luthier("train", "-c", path).exit_code == 0
    assert "reusing train-" in said(luthier("train", "-c", path))
    make_tiny_base(tmp_path / "wise", seed=8)
    assert luthier("train", "-c", path).exit_code == 0
    assert len([one for one in path.parent.glob("runs/train-*") if one.is_dir()]) == 2


REFUSED = [
    ({"rollouts": ROUND}, "loss.kind gkd learns from its teacher alone"),
    ({"rollouts": f"{OWN}, reward_model: nowhere"}, "loss.kind gkd learns from its teacher alone"),
    ({"rollouts": f"{OWN}, resample: 2"}, "loss.kind gkd rewards no answer"),
    ({"more": ", on_policy: 0.5"}, "a prompt has one answer, of the student or of its row"),
    ({"more": ", on_policy: 0"}, "on_policy"),
    ({"more": ", js_beta: 0.3"}, "js_beta is not read by divergence reverse_kl"),
    ({"more": ", pull: 0.3"}, "kind gkd does not read pull"),
    ({"teacher": "nowhere"}, "is no model folder"),
    ({"rollouts": OWN.replace("max_new_tokens: 4", "max_new_tokens: 120")}, "leaves no room for a prompt"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), REFUSED, ids=[case[1][:30] for case in REFUSED])
def test_refused_before_any_weight_is_loaded(project, luthier, monkeypatch, changes, words):
    monkeypatch.setattr(session, "load_frozen", lambda *_, **__: pytest.fail("weights were loaded"))
    result = luthier("train", "-c", project(**changes))
    assert result.exit_code != 0 and words in said(result), said(result)


def test_a_teacher_with_another_tokenizer_is_refused_before_any_weight_is_loaded(
    project, luthier, monkeypatch, tmp_path
):
    teacher = make_tiny_base(tmp_path / "foreign")
    make_tokenizer(teacher, vocab_size=300)
    monkeypatch.setattr(session, "load_frozen", lambda *_, **__: pytest.fail("weights were loaded"))
    result = luthier("train", "-c", project(teacher=teacher))
    assert result.exit_code != 0 and "another tokenizer than the base" in said(result)
    assert "take a teacher of the same family" in json.dumps(str(getattr(result.exception, "hint", "")))

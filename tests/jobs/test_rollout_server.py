"""Rollouts by a server, through the CLI and over HTTP to the real model: what is learnt from, what stale weights do,
answers that fail, keys, exact resume, what is refused.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from luthier.bases.resolve import resolve_base
from luthier.config.rollouts import RolloutsSpec
from luthier.config.server import ServerSpec
from luthier.data.pack import make_shared_batch
from luthier.data.stored import read_encoded
from luthier.engine.inputs import to_device
from luthier.jobs import session
from luthier.jobs.opened import open_folder
from luthier.losses.head import policy_logps
from luthier.models.load import load_model
from luthier.models.sampler import LocalSampler
from luthier.rollouts.api import Api
from luthier.rollouts.rows import AnswerRows
from luthier.rollouts.server import ServerSource, Weights, Words
from luthier.types import EncodedRow
from tests.jobs.serving import serving, slow
from tests.jobs.signalled import kill_at
from tests.jobs.test_on_policy import rounds_of
from tests.jobs.test_online import ROUND, said, trained, writer
from tests.tiny import make_tiny_base

CPU = torch.device("cpu")
SMALL = (
    ROUND.replace("answers: 8", "answers: 4")
    .replace("prompts: 8", "prompts: 4")
    .replace("dev_prompts: 24", "dev_prompts: 4")
)
KEY = "xj29-veryprivate-7781"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_tiny_base(tmp_path_factory.mktemp("served") / "base", initializer_range=0.1)


@pytest.fixture(scope="module")
def shared(base):
    """One server for the tests that do not change what it serves."""
    with serving(base) as server:
        yield server


@pytest.fixture
def server(shared):
    yield shared
    shared.spoil, shared.form, shared.key, shared.num_completions = (lambda number, reply: reply), "ids", "", 0
    shared.seen.clear()


@pytest.fixture
def project(tmp_path, base, server):
    write = writer(tmp_path, base)

    def made(loss="{kind: grpo}", more="", rollouts=SMALL, train=", max_steps: 2", url=None, **settings):
        section = f'server: {{url: "{url or server.url}"{more}}}'
        return write(loss, f"{rollouts}, {section}", train, **settings)

    return made


def files_of(folder) -> str:
    return "".join(
        p.read_text(errors="replace") for p in folder.rglob("*") if p.is_file() and p.suffix != ".safetensors"
    )


def a_little_off(number, reply):
    told = reply["choices"][0]["logprobs"]
    told["token_logprobs"] = [logp - 0.05 for logp in told["token_logprobs"]]
    return reply


def test_answers_of_the_base_are_weighed_by_the_trainers_own_log_probabilities(project, luthier, server, base):
    """The first rounds of four: tokens as the server drew them; the old policy is the base, computed here, and what the
    server tells of it is a little off."""
    server.spoil = a_little_off
    path = project(more=", max_kl: 50", train=", max_steps: 4")
    result = luthier("train", "-c", path)
    assert result.exit_code == 0, said(result)
    folder, _, log = trained(path)
    model = load_model(base)
    sampler = LocalSampler(model, encode=list, decode=str, stop_ids=[2], name="mine")
    (prepared,) = path.parent.glob("runs/prepare-*")
    prompts = {row.row_id: row.ids for row in read_encoded(prepared, "train")}
    drawn = {(tuple(body["prompt"]), body["seed"]) for way, _, body in server.seen if way == "/completions"}
    assert len(drawn) == 4 * 16, "a request an answer, each with its own seed"
    for answers, record in zip(rounds_of(folder), log["rollout"], strict=True):
        assert len(answers) == record["answers"] == 16 and not record["server_lost"] and not record["server_unchecked"]
        assert record["server_gap"] == pytest.approx(0.05, abs=1e-3)
        for one in answers:
            (own,) = sampler.score_ids([([*prompts[one.row], *one.ids], len(prompts[one.row]))])
            assert one.logps == pytest.approx(own, abs=1e-4)
            assert one.server_logps == pytest.approx([logp - 0.05 for logp in own], abs=1e-4)
            assert one.ref_logps == pytest.approx(own, abs=1e-4), "the served base is the reference, at every round"
    policy = [record["policy_kl"] for record in log["train"]]
    assert policy[0] < 1e-9 < 1e-3 < policy[-1], "what the answers were drawn from stays behind"


def test_a_server_whose_weights_stay_behind_is_told_then_stops_the_run(project, luthier, server):
    path = project(more=", max_kl: 0.02", train=", num_epochs: 3")
    result = luthier("train", "-c", path, "--set", "train.learning_rate=4e-3")
    assert result.exit_code != 0
    assert "the run stops at rollouts.server.max_kl 0.02" in said(result), "a warning first"
    assert "more than rollouts.server.max_kl 0.02" in str(result.exception)
    (work,) = path.parent.glob("runs/train-*.work")
    assert len(list((work / "rollouts").iterdir())) >= 2, "it had learnt until then"


@pytest.mark.parametrize(
    ("loss", "rollouts"),
    [
        ("{kind: gkd, teacher: base}", SMALL.replace("rewards: {regex: 1.0}, ", "")),
        ("{kind: ppo}", SMALL),
    ],
    ids=["gkd", "ppo"],
)
def test_the_adapter_is_handed_over_before_each_round(project, luthier, base, loss, rollouts):
    """The server draws from the policy as it stands: its log-probabilities are the trainer's, at every round."""
    with serving(base) as own:
        path = project(loss.replace("base", f'"{base}"'), ", weights: adapter", rollouts, ", max_steps: 3", url=own.url)
        result = luthier("train", "-c", path)
        assert result.exit_code == 0, said(result)
        _, _, log = trained(path)
        names = [body["model"] for way, _, body in own.seen if way == "/completions"]
        assert len(dict.fromkeys(names)) == 3 and all("luthier-" in name for name in names)
        assert len(own.models) == 2, "one adapter is kept there, beside the base"
        for record in log["rollout"]:
            assert record["server_gap"] < 1e-4 and not record["server_lost"]
        if "ppo" in loss:
            assert all(record["policy_kl"] < 1e-9 for record in log["train"])


@pytest.mark.slow
def test_grpo_learns_from_a_server_beyond_the_interval(project, luthier, base):
    with serving(base) as own:
        path = project("{kind: grpo}", ", weights: adapter", ROUND, ", num_epochs: 2", url=own.url)
        result = luthier("train", "-c", path)
        assert result.exit_code == 0, said(result)
    _, facts, log = trained(path)
    best = next(record for record in log["dev"] if record["step"] == facts["best_step"])
    assert best["reward_low"] > facts["dev_before"]["reward_high"]


def bent(field, value):
    def spoil(number, reply):
        if number % 3 == 0:
            reply["choices"][0][field] = value
        return reply

    return spoil


def replaced(made):
    return lambda number, reply: made(reply) if number % 3 == 0 else reply


def half_sure(reply):
    told = reply["choices"][0]["logprobs"]
    told["token_logprobs"] = [logp / 2 - 3 for logp in told["token_logprobs"]]
    return reply


FAULTS = [
    (replaced(lambda _: (500, "out of memory")), "the server answered 500: out of memory"),
    (replaced(lambda _: (429, "slow down")), "the server answered 429: slow down"),
    (replaced(lambda _: None), "the connection failed"),
    (replaced(lambda _: (200, "{\"choices\": [")), "what the server answered is no JSON"),
    (replaced(lambda _: (200, "[" * 100_000)), "what the server answered is no JSON"),
    (replaced(lambda _: (200, "7")), "a reply that is no JSON object"),
    (replaced(lambda reply: {**reply, "choices": []}), "a reply without an answer"),
    (replaced(lambda reply: {**reply, "model": "other"}), "an answer by the model 'other', and 'served' was asked"),
    (bent("token_ids", []), "log-probabilities of another number of tokens"),
    (bent("token_ids", [5.0, 6, 7, 8]), "token ids that are no whole numbers"),
    (bent("token_ids", [5, 6, 7, 10**9]), "a token that is not in the vocabulary"),
    (bent("token_ids", [5, 2, 7, 8]), "goes on after its stop token"),
    (bent("finish_reason", "content_filter"), "ended for the reason 'content_filter'"),
    (bent("logprobs", {"tokens": ["a"] * 4, "token_logprobs": [-1, None, -1, -1]}), "that is no number"),
    (bent("logprobs", {"tokens": ["a"] * 4, "token_logprobs": [-1, math.nan, -1, -1]}), "that none can be"),
    (bent("logprobs", {"tokens": ["a"] * 4, "token_logprobs": [-1, -(10**400), -1, -1]}), "that none can be"),
    (replaced(half_sure), "farther from the trainer's own under the same weights than rollouts.server.tolerance 0.1"),
    (slow(1.0), "no answer within 0.4 s"),
]  # fmt: skip


@pytest.fixture(scope="module")
def source(base, shared):
    """source(more) -> what draws answers from the server, as a run has it, and three prompts."""
    model, opened = load_model(base), open_folder(resolve_base(str(base)))
    prompts = [EncodedRow(f"r{i}", tuple(range(5 + i, 25)), (False,) * (20 - i)) for i in range(3)]
    laid = AnswerRows(
        {p.row_id: p.ids for p in prompts}, make_shared_batch, lambda b: to_device(b, CPU), shares=True, budget=500
    )

    def own(answers):
        return laid.told(answers, lambda b: policy_logps(model, model.hidden(b), b.targets_K)[0])

    def made(**more):
        spec = RolloutsSpec(answers=4, max_new_tokens=4, server=ServerSpec(url=shared.url, **more))
        tokenizer = opened.tokenizer
        encode = lambda text: tokenizer.encode(text, specials=False)  # noqa: E731
        words = Words(encode, opened.codec.parse, opened.codec.stop_ids, 2, tokenizer.vocab_size)
        weights = Weights(lambda: "served", own, own)
        return ServerSource(spec, Api(spec.server), words, weights, lambda _: None), prompts

    return made


@pytest.mark.parametrize(("spoil", "words"), FAULTS, ids=[case[1][:40] for case in FAULTS])
def test_an_answer_that_fails_costs_itself_by_name(source, server, spoil, words):
    drawing, prompts = source(**({"timeout_s": 0.4, "requests": 2} if "within" in words else {}))
    whole = drawing.draw(prompts, 1, lambda: None)
    server.spoil, server.num_completions = spoil, 0
    answers = drawing.draw(prompts, 1, lambda: None)
    lost = [place for place, one in enumerate(answers) if one.error]
    assert len(lost) == 4 and all(words in answers[place].error for place in lost), [one.error for one in answers]
    assert sum(drawing.lost.values()) == 4 == drawing.figures(answers)["server_lost"]
    assert [one for i, one in enumerate(answers) if i not in lost] == [
        one for i, one in enumerate(whole) if i not in lost
    ]
    assert [(one.row, one.number) for one in answers] == [(f"r{i}", n) for i in range(3) for n in range(4)]


def test_faults_cost_answers_and_not_the_run(project, luthier, server):
    faults = iter([FAULTS[0][0], FAULTS[3][0], FAULTS[-2][0]] * 9)
    server.spoil = lambda number, reply: next(faults)(number, reply) if number % 3 == 0 else reply
    path = project(more=", max_kl: 50")
    result = luthier("train", "-c", path)
    assert result.exit_code == 0, said(result)
    folder, _, log = trained(path)
    assert [record["server_lost"] for record in log["rollout"]] == [5, 5]
    assert [len(answers) for answers in rounds_of(folder)] == [11, 11] and not log["rollout"][0]["reward_failed"]
    for words in ("500: out of memory", "is no JSON", "farther from the trainer's own"):
        assert words in said(result)
    assert "answers of http://127.0.0.1:" in said(result) and "were left out" in said(result)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda *_: (503, "loading"), "16 of 16 times: the server answered 503: loading"),
        (lambda _, reply: half_sure(reply), "16 of 16 times: log-probabilities farther"),
        (lambda *_: (404, "gone"), "answered 404: gone"),
        (lambda *_: (307, ""), "answered 307"),
    ],
    ids=["down", "other weights", "gone", "elsewhere"],
)
def test_a_server_without_one_good_answer_ends_the_run_with_words(project, luthier, server, spoil, words):
    server.spoil = spoil
    result = luthier("train", "-c", project())
    assert result.exit_code != 0 and words in str(result.exception) and result.exception.hint  # type: ignore[union-attr]


@pytest.mark.parametrize("form", ["names", "content", "text"])
def test_tokens_as_servers_tell_them(source, server, form):
    """The same answers in other forms. Text alone is tokenised here, and nobody can check it."""
    drawing, prompts = source()
    whole = drawing.draw(prompts, 1, lambda: None)
    server.form = form
    answers = drawing.draw(prompts, 1, lambda: None)
    if form != "text":
        assert answers == whole and all(len(one.server_logps) == len(one.ids) for one in answers)
        return
    assert drawing.figures(answers)["server_unchecked"] == 12 - drawing.figures(answers)["server_lost"]
    assert all(one.text == other.text for one, other in zip(answers, whole, strict=True) if not one.error)
    assert all(len(one.logps) == len(one.ids) and np.isfinite(one.logps).all() for one in answers if not one.error)


def test_a_server_that_nobody_can_check_is_told(project, luthier, server):
    server.form = "text"
    result = luthier("train", "-c", project(train=", max_steps: 1"))
    assert result.exit_code == 0 and "told no log-probabilities of" in said(result), said(result)


def test_the_key_comes_from_the_environment_and_lands_nowhere(project, luthier, server, monkeypatch):
    server.key = KEY
    path = project(train=", max_steps: 1")
    monkeypatch.delenv("LUTHIER_SERVER_API_KEY", raising=False)
    without = luthier("train", "-c", path)
    assert without.exit_code != 0 and "answered 401" in said(without)
    assert "set the environment variable LUTHIER_SERVER_API_KEY" in without.exception.hint  # type: ignore[union-attr]
    monkeypatch.setenv("LUTHIER_SERVER_API_KEY", KEY[::-1])
    wrong = luthier("train", "-c", path)
    assert wrong.exit_code != 0 and "the one that is set is refused" in wrong.exception.hint  # type: ignore[union-attr]
    assert KEY[::-1] not in said(wrong), "the server says the key back; luthier does not"
    monkeypatch.setenv("LUTHIER_SERVER_API_KEY", KEY)
    result = luthier("train", "-c", path)
    assert result.exit_code == 0, said(result)
    assert {headers.get("Authorization") for _, headers, _ in server.seen[-16:]} == {f"Bearer {KEY}"}
    assert KEY not in files_of(path.parent) + said(result)
    assert KEY not in luthier("config", "show", "-c", path).output


REFUSED = [
    ({"more": ", model: other"}, "does not serve 'other'; it serves served"),
    ({"url": "http://127.0.0.1:9/v1"}, "does not answer: the connection failed"),
    ({"url": "ftp://here/v1"}, "is no address of a server"),
    ({"url": "http://here:notaport/v1"}, "rollouts.server.url"),
    ({"url": "http://me:secret@here/v1"}, "password in an address"),
    ({"url": "http://here/v1?key=abc"}, "an address with a user, a query or a fragment"),
    ({"more": ", api_key_env: SERVER"}, "does not say that it is a secret"),
    ({"more": ", key: abc"}, "key"),
    ({"rollouts": f"{SMALL}, temperature: 0.7"}, "from before or from after the temperature"),
    ({"loss": "{kind: ppo}"}, "ppo takes the distance to the base off the rewards as it was sampled"),
    ({"loss": "{kind: sft}"}, "loss.kind sft samples no answers"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), REFUSED, ids=[case[1][:30] for case in REFUSED])
def test_refused_before_any_weight_is_loaded(project, luthier, monkeypatch, changes, words):
    monkeypatch.setattr(session, "load_frozen", lambda *_, **__: pytest.fail("weights were loaded"))
    result = luthier("train", "-c", project(**changes))
    assert result.exit_code != 0 and words in said(result), said(result)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["base", "adapter"])
def test_a_run_that_was_killed_ends_bit_for_bit_as_if_it_were_not(project, luthier, base, weights):
    """By SIGKILL between two steps of the third round; the server lives on, and draws by the seed it is asked with."""
    rollouts = SMALL.replace("prompts: 4", "prompts: 4, inner_epochs: 2", 1)
    more = f", weights: {weights}, max_kl: 50"
    with serving(base) as own:
        path = project("{kind: grpo}", more, rollouts, ", max_steps: 10, save_steps: 5", url=own.url)
        assert luthier("train", "-c", path, "--set", "output_dir=whole").exit_code == 0
        kill_at("engine/checkpoint.py:save:1", "train", "-c", path)
        assert luthier("train", "-c", path).exit_code == 0
    whole, folder = trained(path, "whole")[0], trained(path)[0]
    for name in ("adapter/adapter_model.safetensors", *(f"rollouts/{p.name}" for p in (whole / "rollouts").iterdir())):
        assert (whole / name).read_bytes() == (folder / name).read_bytes(), name


def test_a_finished_run_stands_without_its_server(project, luthier, base):
    with serving(base) as own:
        path = project(train=", max_steps: 1", url=own.url)
        assert luthier("train", "-c", path).exit_code == 0
    assert "reusing train-" in said(luthier("train", "-c", path))
    assert json.loads(next(path.parent.glob("runs/train-*/manifest.json")).read_text())["facts"]["loss"] == "grpo"

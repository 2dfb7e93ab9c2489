"""The distances themselves, the judgement, and luthier's own models as reference and candidate."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from peft import PeftModel

from luthier.adapters.stored import load_adapter
from luthier.errors import ArtifactError
from luthier.models.load import load_model
from luthier.ship.gguf_file import KINDS, unpack_gguf, write_gguf
from luthier.ship.merge import merge
from luthier.ship.parity import (
    ModelCandidate,
    ParityMetrics,
    ParityRow,
    full_distances,
    greedy_match,
    judge,
    model_logits,
    parity,
    record_reference,
    top_kl,
)
from luthier.types import Completion
from tests.ship.bases import codec_of, load, logits_of, parity_rows, sharp_base
from tests.ship.test_merge import make_adapter

FP = {"kl": 1e-3, "top1": 0.99}


def random_logprobs(*shape: int, seed: int = 0) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(scale=2.0, size=shape)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(base, adapter, merged, rows): a base with an adapter that changes its answers."""
    folder = tmp_path_factory.mktemp("parity")
    base = sharp_base(folder / "base")
    adapter = make_adapter(base, folder / "adapter")
    merge(base, adapter, folder / "merged")
    return base, adapter, folder / "merged", parity_rows(base)


def adapted(base, adapter):
    model = load_model(base)
    load_adapter(model, adapter)
    return model


def test_full_distances_are_torch_s():
    p, q = random_logprobs(5, 40), random_logprobs(5, 40, seed=1)
    kl, _ = full_distances(p, q)
    expected = torch.nn.functional.kl_div(torch.tensor(q), torch.tensor(p), log_target=True, reduction="none").sum(-1)
    np.testing.assert_allclose(kl, expected.numpy(), rtol=1e-12)
    assert full_distances(p, p)[0].max() == 0 and full_distances(p, p)[1].all()


def test_ties_of_the_reference_count_as_the_same():
    reference = np.log(np.array([[0.450, 0.449, 0.101], [0.50, 0.40, 0.10]]))
    swapped = np.log(np.array([[0.449, 0.450, 0.101], [0.40, 0.50, 0.10]]))
    assert full_distances(reference, swapped)[1].tolist() == [True, False]


def test_top_kl_is_exact_with_all_tokens_and_a_lower_bound_with_few():
    p, q = random_logprobs(60), random_logprobs(60, seed=1)
    exact = float(full_distances(p[None], q[None])[0][0])
    order = np.argsort(-q)
    bounds = [top_kl(p, order[:num], q[order[:num]]) for num in (1, 5, 20, 59, 60)]
    assert all(0 <= low <= high + 1e-12 for low, high in itertools.pairwise(bounds))
    assert math.isclose(bounds[-1], exact, rel_tol=1e-9)
    assert top_kl(p, np.arange(60)[:7], p[:7]) < 1e-12


def test_judge_names_each_reason():
    good = ParityMetrics(1e-4, 1e-3, 1e-2, 1.0, 10, 2, prompts_equal=1.0, greedy_match=0.0)
    assert judge("merged", "luthier", good, FP).passed  # greedy agreement is reported, never judged
    bad = ParityMetrics(0.5, 1.0, 2.0, 0.5, 10, 2, prompts_equal=0.5)
    record = judge("merged", "luthier", bad, FP)
    assert not record.passed and len(record.reasons) == 3
    assert not judge("merged", "luthier", ParityMetrics(math.inf, 0, 0, 1.0, 1, 1), FP).passed


def test_merged_folder_equals_the_adapter_for_luthier_and_for_peft(trained, tmp_path):
    base, adapter, merged, rows = trained
    ours = record_reference(model_logits(adapted(base, adapter)), rows, tmp_path / "ours.npy")
    theirs = record_reference(logits_of(PeftModel.from_pretrained(load(base), adapter)), rows, tmp_path / "theirs.npy")
    candidate = ModelCandidate("luthier", model_logits(load_model(merged)), codec_of(merged).prompt_ids)
    for reference in (ours, theirs):
        metrics = parity(reference, candidate)
        assert metrics.kl_max < 1e-6 and metrics.top1 == 1.0 and metrics.prompts_equal == 1.0
        assert metrics.num_positions == sum(len(row.answer_ids) for row in rows)
    assert ours.first(1).rows == tuple(rows[:1]) and parity(ours.first(1), candidate).num_rows == 1


@pytest.mark.parametrize("fault", ["base", "twice"])
def test_a_merge_that_went_wrong_does_not_pass(trained, tmp_path, fault):
    base, adapter, merged, rows = trained
    reference = record_reference(model_logits(adapted(base, adapter)), rows, tmp_path / "reference.npy")
    wrong = base
    if fault == "twice":
        wrong = tmp_path / "twice"
        merge(merged, adapter, wrong)
    metrics = parity(reference, ModelCandidate("luthier", model_logits(load_model(wrong))))
    assert not judge("merged", "luthier", metrics, FP).passed


def test_finer_kinds_are_closer(trained, tmp_path):
    base, adapter, merged, rows = trained
    reference = record_reference(model_logits(adapted(base, adapter)), rows, tmp_path / "reference.npy")
    kl = {}
    for kind in KINDS:
        write_gguf(merged, tmp_path / "x.gguf", kind)
        folder = unpack_gguf(tmp_path / "x.gguf", merged, tmp_path / kind)
        kl[kind] = parity(reference, ModelCandidate("luthier", model_logits(load_model(folder)))).kl_mean
    assert kl["gguf-f16"] < kl["gguf-q8_0"] < min(kl["gguf-q4_1"], kl["gguf-q4_0"])
    assert kl["gguf-f16"] < 2e-3


def test_other_template_is_seen(trained, tmp_path):
    base, adapter, merged, rows = trained
    reference = record_reference(model_logits(adapted(base, adapter)), rows, tmp_path / "reference.npy")
    codec = codec_of(merged)
    shouting = lambda messages: codec.prompt_ids([{**m, "content": m["content"].upper()} for m in messages])  # noqa: E731
    metrics = parity(reference, ModelCandidate("luthier", model_logits(load_model(merged)), shouting))
    record = judge("merged", "luthier", metrics, FP)
    assert not record.passed and "same token ids" in record.reasons[0]


def test_reference_refuses_nan_and_empty_rows(tmp_path):
    rows = [ParityRow("r", (1, 2), (3,))]
    with pytest.raises(ArtifactError, match="NaN"):
        record_reference(lambda ids, positions: np.full((len(positions), 4), np.nan), rows, tmp_path / "x.npy")
    for broken in ([], [ParityRow("r", (1, 2), ())], [ParityRow("r", (), (1,))]):
        with pytest.raises(ArtifactError, match="rows with a prompt and an answer"):
            record_reference(lambda ids, positions: np.zeros((len(positions), 4)), broken, tmp_path / "x.npy")


def test_nan_candidate_and_other_vocabulary_do_not_pass(tmp_path):
    rows = [ParityRow("r", (1, 2), (3, 1))]
    reference = record_reference(lambda ids, positions: np.zeros((len(positions), 4)), rows, tmp_path / "x.npy")
    nan = ModelCandidate("nan", lambda ids, positions: np.full((len(positions), 4), np.nan))
    assert not judge("merged", "luthier", parity(reference, nan), FP).passed
    with pytest.raises(ArtifactError, match="vocabulary differs"):
        parity(reference, ModelCandidate("wide", lambda ids, positions: np.zeros((len(positions), 5))))


def test_greedy_match_is_by_text():
    a, b = Completion("yes", (1, 2), "stop"), Completion("yes", (1,), "stop")
    assert greedy_match([a, a], [b, Completion("no", (3,), "stop")]) == 0.5

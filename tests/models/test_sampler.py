"""The sampler equals transformers' generate and depends on nothing but the prompt; the scorer equals log-softmax."""

import itertools

import numpy as np
import pytest
import torch

from luthier.errors import EvaluateError
from luthier.models import sampler as sampler_module
from luthier.models.load import load_model
from luthier.models.sampler import LocalSampler
from tests.models.folders import documents, oracle, oracle_logits, pack

STOP = 2


def local(model, batch_size=4, **hooks):
    return LocalSampler(model, encode=list, decode=str, stop_ids={STOP}, name="tiny", batch_size=batch_size, **hooks)


def ragged(num_prompts, prefix_length=11):
    """Prompts of many lengths, all beginning alike; shuffled so that order has to be restored."""
    shared = documents([prefix_length], seed=5)[0] if prefix_length else []
    lengths = np.random.default_rng(1).integers(1, 15, num_prompts).tolist()
    return [shared + d for d in documents(lengths, seed=6)]


def generate(reference, prompt, max_new_tokens):
    ids = torch.tensor([prompt])
    out = reference.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=STOP
    )
    return out[0, len(prompt) :].tolist()


def test_greedy_equals_generate(arch_model, arch_folder):
    """Ragged, more prompts than slots, a shared prefix longer than the windows."""
    reference = oracle(arch_folder)
    if arch_model.spec.rope.kind == "longrope":  # rows that cross the border mid-way are tested below
        prompts = documents([3, 5, 4, 9, 2, 7, 3]) + documents([25, 30], seed=3)
    else:
        prompts = ragged(9)
    done = local(arch_model).sample_ids(prompts, max_new_tokens=9)
    for prompt, completion in zip(prompts, done, strict=True):
        assert list(completion.ids) == generate(reference, prompt, 9)
        assert (completion.finish == "stop") == (completion.ids[-1] == STOP)
        assert completion.text == str([i for i in completion.ids if i != STOP])


def test_stop_tokens_end_rows_early_and_slots_are_refilled(matrix_folder):
    """With a third of the vocabulary as stop tokens rows end at all times; each must equal itself alone."""
    model = load_model(matrix_folder("llama-gqa-tied"))
    stops = frozenset(range(0, 101, 3))
    prompts = ragged(23)
    together = LocalSampler(model, encode=list, decode=str, stop_ids=stops, name="tiny", batch_size=4)
    done = together.sample_ids(prompts, max_new_tokens=12)
    assert len({len(c.ids) for c in done}) > 3 and any(len(c.ids) == 1 for c in done)
    for prompt, completion in zip(prompts, done, strict=True):
        assert together.sample_ids([prompt], max_new_tokens=12) == [completion]
        assert not stops & set(completion.ids[:-1])
        assert (completion.finish == "stop") == (completion.ids[-1] in stops)


@pytest.mark.parametrize("prefix_length", [0, 3, 40])
def test_prefix_of_any_length_changes_nothing(matrix_folder, prefix_length):
    for name in ("mistral-window", "gemma2", "qwen2"):
        model = load_model(matrix_folder(name))
        prompts = ragged(6, prefix_length)
        prompts.append([*prompts[0][:prefix_length], 7])
        together = local(model).sample_ids(prompts, max_new_tokens=5)
        assert together == [local(model).sample_ids([p], max_new_tokens=5)[0] for p in prompts]


def test_one_prompt_is_the_prefix_of_another_and_duplicates(matrix_folder):
    model = load_model(matrix_folder("llama-gqa-tied"))
    base = documents([20], seed=8)[0]
    prompts = [base, [*base, 9], base, base[:12]]
    done = local(model).sample_ids(prompts, max_new_tokens=4)
    assert done[0] == done[2]
    assert done == [local(model).sample_ids([p], max_new_tokens=4)[0] for p in prompts]


def test_seeded_sampling_ignores_batch_mates(matrix_folder):
    model = load_model(matrix_folder("llama-gqa-tied"))
    prompts = ragged(11)
    options = {"max_new_tokens": 8, "temperature": 1.0, "seed": 3}
    done = local(model).sample_ids(prompts, **options)
    backwards = local(model, batch_size=3).sample_ids(prompts[::-1], **options)[::-1]
    assert done == backwards == [local(model).sample_ids([p], **options)[0] for p in prompts]
    assert done != local(model).sample_ids(prompts, **{**options, "seed": 4})
    twice = local(model).sample_ids([prompts[0]] * 6, **options)
    assert twice[0] == done[0] and len(set(twice)) > 1


def test_sampling_follows_the_distribution(matrix_folder):
    model = load_model(matrix_folder("llama-gqa-tied"))
    prompt, n = documents([5])[0], 4000
    drawn = local(model, batch_size=500).sample_ids([prompt] * n, max_new_tokens=1, temperature=0.7)
    counts = torch.bincount(torch.tensor([c.ids[0] for c in drawn]), minlength=101)
    with torch.no_grad():
        expected = n * torch.softmax(oracle_logits(oracle(matrix_folder("llama-gqa-tied")), [prompt])[0][-1] / 0.7, -1)
    common = expected > 5
    chi2 = float(((counts - expected)[common] ** 2 / expected[common]).sum())
    assert chi2 < int(common.sum()) + 4 * (2 * int(common.sum())) ** 0.5


def test_little_memory_gives_the_same_answers(matrix_folder, monkeypatch):
    model = load_model(matrix_folder("llama-gqa-tied"))
    prompts = ragged(9)
    want = local(model).sample_ids(prompts, max_new_tokens=6)
    monkeypatch.setattr(sampler_module, "_CACHE_BYTES", 40 * model.kv_bytes_per_token)
    assert local(model).sample_ids(prompts, max_new_tokens=6) == want


def test_longrope_rows_beyond_the_original_context_use_the_long_factors(matrix_folder):
    """A row's class is that of prompt + cap, so that its cached keys and later queries agree with one forward."""
    model = load_model(matrix_folder("phi3-longrope"))
    prompts = documents([18, 4, 26])
    for prompt, completion in zip(prompts, local(model).sample_ids(prompts, max_new_tokens=6), strict=True):
        row = [*prompt, *completion.ids, *[3] * (6 - len(completion.ids))]  # causal: only its length matters
        keep = list(range(len(prompt) - 1, len(prompt) - 1 + len(completion.ids)))
        with torch.no_grad():
            logits = model.head(model.hidden(pack([row], [keep])))
        assert logits.argmax(-1).tolist() == list(completion.ids)


def test_progress_and_mode(matrix_folder):
    model = load_model(matrix_folder("llama-gqa-tied")).train()
    calls = []
    local(model).sample_ids(
        ragged(6), max_new_tokens=3, progress=lambda done, total, **f: calls.append((done, total, f))
    )
    assert calls[-1][:2] == (6, 6) and calls[-1][2]["tokens_per_s"] > 0 and model.training
    assert all(a[0] <= b[0] for a, b in itertools.pairwise(calls))


def test_refusals(matrix_folder):
    model = load_model(matrix_folder("llama-gqa-tied"))
    assert local(model).sample_ids([], max_new_tokens=3) == []
    with pytest.raises(EvaluateError, match="no tokens"):
        local(model).sample_ids([[5], []], max_new_tokens=3)
    with pytest.raises(EvaluateError, match="max_new_tokens"):
        local(model).sample_ids([[5]], max_new_tokens=0)
    with pytest.raises(EvaluateError, match="encode_answer"):
        local(model).score([])
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(EvaluateError, match="not finite"):
        local(model).sample_ids([[5]], max_new_tokens=3)


def test_scores_equal_log_softmax(arch_model, arch_folder):
    docs = documents([9, 33, 17, 2, 17])
    starts = [4, 30, 1, 1, 16]
    with torch.no_grad():
        logits = oracle_logits(oracle(arch_folder), docs)
    got = local(arch_model).score_ids(list(zip(docs, starts, strict=True)))
    for ids, start, x, row in zip(docs, starts, logits, got, strict=True):
        log_p = torch.log_softmax(x.double(), -1)
        want = [float(log_p[t - 1, ids[t]]) for t in range(start, len(ids))]
        assert row == pytest.approx(want, rel=1e-5, abs=1e-5)


def test_score_and_score_texts_go_through_the_encoders(matrix_folder, monkeypatch):
    model = load_model(matrix_folder("llama-gqa-tied"))
    monkeypatch.setattr(sampler_module, "_SCORE_TOKENS", 16)
    monkeypatch.setattr(sampler_module, "_SCORE_ROWS", 3)

    def to_ids(text):
        return [3 + byte % 90 for byte in text.encode()]

    def encode_answer(messages, answer):
        prompt = to_ids(messages[-1]["content"])
        return [*prompt, *to_ids(answer), STOP], len(prompt)

    scorer = local(model, encode_answer=encode_answer, encode_text=to_ids)
    pairs = [([{"role": "user", "content": f"quéstion {i}"}], "yes" * i) for i in range(5)]
    assert [len(row) for row in scorer.score(pairs)] == [1, 4, 7, 10, 13]
    texts = ["grüße", "a longer plain text, longer than one pack", "x", ""]
    sums = scorer.score_texts(texts)
    assert [n for _, n in sums] == [len(t.encode()) for t in texts] and sums[2][0] == sums[3][0] == 0.0
    alone = [scorer.score_texts([t])[0][0] for t in texts]
    assert [s for s, _ in sums] == pytest.approx(alone, rel=1e-5)


@pytest.mark.known_bug("GC4")
def test_a_model_that_has_sampled_can_be_trained(arch_folder):
    """Tables and caches that sampling makes first, in inference mode, must not spoil the training that follows: same
    loss and gradients as a model that never sampled.
    """
    docs, gradients = documents([9, 33, 2]), []
    for samples in (True, False):
        model = load_model(arch_folder)
        if samples:
            local(model).sample_ids(docs, max_new_tokens=3)
            for doc in docs:
                local(model).score_ids([(doc, 1)])
        for batch in (pack(docs), *(pack([doc]) for doc in docs), *(pack([doc[:-1]]) for doc in docs[:2])):
            model.head(model.hidden(batch)).square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert not gradient.is_inference() and torch.equal(gradient, gradients[1][name]), name

"""Virtual tokens before every document: in packs, in the sampler's caches, and with shared prefixes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from luthier.adapters.registry import Given, apply_method
from luthier.config.adapter import AdapterSpec
from luthier.data.pack import make_batch, make_shared_batch
from luthier.models import attention
from luthier.models.load import load_model
from luthier.models.row_cache import lowest_trained
from luthier.models.sampler import LocalSampler
from luthier.types import EncodedRow
from tests.tiny import ARCHS, make_tiny_base

METHODS = ("prompt_tuning", "p_tuning", "prefix_tuning")


@pytest.fixture(scope="module", params=sorted(ARCHS))
def base(request, tmp_path_factory):
    return make_tiny_base(tmp_path_factory.mktemp("soft") / request.param, request.param)


def behind(base, method: str, **changes):
    model = load_model(base)
    given = Given(lambda: None, lambda name: torch.zeros(0), lambda text: [ord(c) % 100 for c in text])
    handle = apply_method(model, AdapterSpec(method=method, num_virtual_tokens=6, **changes), seed=1, given=given)
    with torch.no_grad():
        for number, parameter in enumerate(handle.trained().values()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.add_(0.1 * noise)
    return handle


def rows(*lengths: int) -> list[EncodedRow]:
    rng = np.random.default_rng(0)
    common = tuple(rng.integers(3, 200, 12).tolist())
    made = []
    for number, length in enumerate(lengths):
        ids = common + tuple(rng.integers(3, 200, length).tolist())
        made.append(EncodedRow(str(number), ids, tuple(t >= 14 for t in range(len(ids)))))
    return made


def logits_of(model, batch) -> torch.Tensor:
    with torch.no_grad():
        return model.head(model.hidden(batch))


@pytest.mark.parametrize("method", METHODS)
def test_documents_of_a_pack_are_each_behind_the_tokens_and_blind_to_each_other(base, method, monkeypatch):
    """A pack gives what its rows give alone, a shared layout the same; with the kernel and without it."""
    model, many = behind(base, method).model.eval(), rows(9, 30, 4)
    packed = logits_of(model, make_batch(many))
    alone = torch.cat([logits_of(model, make_batch([row])) for row in many])
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)
    shared = make_shared_batch(many, 6)
    assert shared.parents_D is not None
    number_K = [int(shared.row_ids[sequence]) for sequence in shared.sequences_K]
    order = np.argsort(number_K, kind="stable")  # a shared layout puts rows in another order
    torch.testing.assert_close(logits_of(model, shared)[order], packed, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(attention, "can_attend", lambda q: False)
    torch.testing.assert_close(logits_of(model, make_batch(many)), packed, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_sampler_continues_what_the_forward_pass_says(base, method):
    """Greedy ids of several prompts with a common prefix, against the whole forward pass token by token."""
    model = behind(base, method).model.eval()
    prompts = [list(row.ids) for row in rows(3, 7, 5)]
    sampler = LocalSampler(model, encode=lambda m: [], decode=str, stop_ids=(), name="x", batch_size=2)
    answers = sampler.sample_ids(prompts, max_new_tokens=5)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = list(prompt)
        for token in answer.ids:
            row = EncodedRow("r", (*ids, 3), (False,) * len(ids) + (True,))
            assert int(logits_of(model, make_batch([row])).argmax()) == token
            ids.append(token)


def test_prefix_and_prompt_start_as_the_text_that_is_given(base):
    """The base behind its tokens, over and over; and nothing below them is ever read from a row cache."""
    row = rows(9)[0]
    for method in ("prompt_tuning", "prefix_tuning"):
        given = Given(lambda: None, lambda name: torch.zeros(0), lambda text: [17, 40, 99, 5])
        model = load_model(base)
        spec = AdapterSpec(method=method, num_virtual_tokens=6, prompt_init_text="some task")
        apply_method(model, spec, seed=1, given=given)
        assert lowest_trained(model) == 0
        longer = EncodedRow("r", (17, 40, 99, 5, 17, 40, *row.ids), (False,) * 6 + row.trained)
        expected = logits_of(load_model(base), make_batch([longer]))
        torch.testing.assert_close(logits_of(model, make_batch([row])), expected, rtol=1e-4, atol=1e-5)

"""A prefix computed once gives the loss and every gradient that computing it for each row gives, on every backend."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from luthier.adapters.lora import apply_lora
from luthier.config.adapter import AdapterSpec
from luthier.data.pack import make_batch, make_shared_batch
from luthier.engine.inputs import to_device
from luthier.models import attention, decoder
from luthier.models.family import unshared
from luthier.models.load import load_model
from luthier.types import EncodedRow
from tests.models.folders import relative

CPU = torch.device("cpu")


def rows_of(prefix: int, own: list[tuple[int, int]], seed: int, name: str = "r") -> list[EncodedRow]:
    """Rows that begin with the same `prefix` tokens; own: (prompt tokens, trained tokens) of each."""
    rng = np.random.default_rng(seed)
    shared = rng.integers(3, 101, prefix).tolist()
    made = []
    for number, (num_prompt, num_answer) in enumerate(own):
        ids = (*shared, *rng.integers(3, 101, num_prompt + num_answer).tolist())
        made.append(EncodedRow(f"{name}{number}", ids, (False,) * (prefix + num_prompt) + (True,) * num_answer))
    return made


def mixed_rows() -> list[EncodedRow]:
    """Two groups, a row by itself, a row without loss, a group of equal prompts, a row twice."""
    many = rows_of(12, [(3, 4), (1, 1), (5, 3), (3, 4), (6, 0), (2, 9)], 1, "many")
    two = rows_of(6, [(4, 2), (2, 5)], 2, "two")
    (alone,) = rows_of(0, [(9, 8)], 3, "alone")
    equal_prompts = rows_of(8, [(0, 3), (0, 5), (0, 1)], 4, "equal")
    return [many[0], two[0], alone, *many[1:], two[1], *equal_prompts, equal_prompts[0]]


def adapted(folder):
    """The model with an adapter on every linear layer, far from its start values."""
    model = load_model(folder)
    apply_lora(model, AdapterSpec(lora_r=3), seed=0)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model


def loss_and_gradients(model, batch):
    model.zero_grad()
    loss = F.cross_entropy(model.head(model.hidden(batch)), batch.targets_K, reduction="sum")
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_same(model, shared, plain, tolerance=1e-5):
    """In float32 the two ways differ by rounding alone. What 1e-5 of float32 cannot tell apart, float64 does."""
    assert_close(model, shared, plain, loss=tolerance, gradients=tolerance)
    assert_close(model.double(), shared, plain, loss=tolerance / 100, gradients=tolerance)


def assert_close(model, shared, plain, *, loss, gradients):
    assert sorted(shared.row_ids) == sorted(plain.row_ids) and shared.num_represented == len(plain.ids_T)
    got, got_grads = loss_and_gradients(model, to_device(shared, CPU))
    want, want_grads = loss_and_gradients(model, to_device(plain, CPU))
    assert got == pytest.approx(want, rel=loss)
    assert got_grads.keys() == want_grads.keys() and len(got_grads) > 10
    for name, grad in want_grads.items():
        assert float(grad.abs().max()) > 0, name
        assert relative(got_grads[name], grad) < gradients, name


@pytest.fixture
def kernel_calls(monkeypatch):
    """The calls of the kernel (it still runs) on documents that continue another."""
    calls = []

    def counted(*args):
        calls.extend([len(args[0])] * any(document.num_prefix for document in args[3].documents))
        return kernel(*args)

    kernel = attention.attend_causal
    monkeypatch.setattr(attention, "attend_causal", counted)
    return calls


def test_equals_unshared(arch_folder, kernel_calls):
    """Loss and all A and B gradients, last layer pruned; windows of 5 to 9 tokens end inside prefixes of 6 to 12."""
    model, rows = adapted(arch_folder), mixed_rows()
    shared = make_shared_batch(rows, min_prefix_tokens=4)
    assert (np.asarray(shared.parents_D) >= 0).sum() == 12 and len(shared.ids_T) < 0.7 * shared.num_represented
    assert_same(model, shared, make_batch(rows))
    sees_all = model.spec.attention_soft_cap is None and set(model.spec.windows) == {None}
    if sees_all and model.spec.rope.kind != "longrope" and model.spec.head_dim % 4 == 0:
        assert len(kernel_calls) == model.spec.num_layers


def test_window_wider_than_the_rows_takes_the_kernel(matrix_folder, kernel_calls):
    model, rows = adapted(matrix_folder("phi3")), rows_of(4, [(1, 3), (2, 2), (2, 3)], 1)
    assert_same(model, make_shared_batch(rows, 4), make_batch(rows))
    assert len(kernel_calls) == model.spec.num_layers


def test_every_position_kept(matrix_folder):
    """No pruning: hidden states of all own tokens, in every layer."""
    model, rows = load_model(matrix_folder("llama-gqa-tied")), rows_of(12, [(3, 4), (1, 1), (70, 3), (2, 5)], 1)
    shared = make_shared_batch(rows, 4)
    every = type(shared)(**{**vars(shared), "keep_K": np.arange(12, len(shared.ids_T))})
    with torch.no_grad():
        got, want = model.hidden(every), model.hidden(unshared(every))
        whole = model.hidden(type(shared)(**{**vars(shared), "keep_K": np.arange(len(shared.ids_T))}))
    assert relative(got, want) < 1e-5 and relative(whole[12:], want) < 1e-5


def test_long_rows_and_several_blocks(matrix_folder):
    """Own parts of one to a few hundred tokens behind a prefix of 300: more than one block of the kernel."""
    model = adapted(matrix_folder("qwen2"))
    rows = rows_of(300, [(20, 5), (1, 1), (64, 64), (200, 30), (0, 7), (60, 5)], 1)
    assert_same(model, make_shared_batch(rows), make_batch(rows))


@pytest.mark.parametrize("prefix", [8, 16, 24])
def test_longrope_goes_by_the_whole_row(matrix_folder, prefix, monkeypatch):
    """Prefix below and above the original context of 20; all rows beyond it, all below it, or some: then unshared."""
    model, plans = adapted(matrix_folder("phi3-longrope")), []

    def kept(plan, *args):
        plans.append(plan)
        return attention.PackedAttention(plan, *args)

    monkeypatch.setattr(decoder, "PackedAttention", kept)
    for own in ([(1, 1), (2, 1), (1, 2)], [(9, 6), (12, 2)], [(1, 1), (9, 9), (12, 3)]):
        rows = rows_of(prefix, own, 1)
        plans.clear()
        assert_same(model, make_shared_batch(rows, 4), make_batch(rows))
        lengths = [len(row.ids) for row in rows]
        assert any(plan.families for plan in plans) == (min(lengths) > 20 or max(lengths) <= 20)


@pytest.mark.known_bug("PK1")
@pytest.mark.parametrize("name", ["llama-gqa-tied", "gemma2", "mistral-window"])
def test_children_do_not_see_each_other(matrix_folder, name):
    """Other tokens in one child: every other row's hidden states stay bitwise what they were."""
    model, rows = load_model(matrix_folder(name)), rows_of(12, [(3, 4), (3, 4), (5, 3), (2, 9)], 1)
    other = rows_of(12, [(3, 4), (3, 4), (5, 3), (2, 9)], 1)[2]
    changed_ids = (*other.ids[:12], *((i + 1) % 101 for i in other.ids[12:]))
    changed = [*rows[:2], EncodedRow("r2", changed_ids, other.trained), rows[3]]
    hidden = []
    with torch.no_grad():
        for chosen in (rows, changed):
            batch = make_shared_batch(chosen, 4)
            owner = np.repeat(np.arange(4), [sum(row.trained) for row in sorted(chosen, key=lambda r: len(r.ids))])
            hidden.append((model.hidden(batch), owner, batch.row_ids))
    (before, owner, ids), (after, _, _) = hidden
    for place, row_id in enumerate(ids):
        assert torch.equal(before[owner == place], after[owner == place]) == (row_id != "r2")


def test_transformers_path_computes_the_prefix_for_every_row(tmp_path):
    """It cannot share; the numbers are the same, and `shares_prefixes` says so."""
    torch.manual_seed(0)
    shapes = {"vocab_size": 101, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    GPTNeoXForCausalLM(GPTNeoXConfig(**shapes, num_attention_heads=4)).save_pretrained(tmp_path)
    model, rows = adapted(tmp_path), mixed_rows()
    assert not model.shares_prefixes
    assert_same(model, make_shared_batch(rows, 4), make_batch(rows))


def test_half_precision_shares_too(matrix_folder):
    rows = mixed_rows()
    exact, half = load_model(matrix_folder("qwen2")), load_model(matrix_folder("qwen2"), dtype="bfloat16")
    with torch.no_grad():
        batch = make_shared_batch(rows, 4)
        assert relative(half.hidden(batch).float(), exact.hidden(batch)) < 0.1


def test_unshared_is_the_batch_of_the_same_rows():
    rows = mixed_rows()
    shared = make_shared_batch(rows, 4)
    by_id = {row.row_id: row for row in rows}
    back, want = unshared(shared), make_batch([by_id[row_id] for row_id in shared.row_ids])
    for name in ("ids_T", "positions_T", "cu_seqlens", "keep_K", "targets_K"):
        assert np.array_equal(getattr(back, name), getattr(want, name)), name
    assert back.parents_D is None and back.row_ids == want.row_ids and unshared(want) is want


def test_bad_families_are_refused(matrix_folder):
    """A parent apart from its children, a grandchild, a wrong count; a kept prefix position when sharing is undone."""
    model = load_model(matrix_folder("llama-gqa-tied"))
    batch = make_shared_batch(rows_of(12, [(3, 4), (1, 1), (5, 3)], 1), 4)
    for parents in ([-1, 0, -1, 0], [-1, 0, 1, 1], [-1, 0, 0], [-1, 2, -1, 2]):
        with pytest.raises(ValueError):
            model.hidden(type(batch)(**{**vars(batch), "parents_D": np.array(parents)}))
    with pytest.raises(ValueError, match="belongs to no single row"):
        unshared(type(batch)(**{**vars(batch), "keep_K": np.array([3])}))

"""The decoder equals transformers: logits, gradients, packing, isolation, pruning."""

import pytest
import torch
import torch.nn.functional as F

from luthier.models.decoder import Decoder
from luthier.models.load import load_model
from tests.models.folders import documents, oracle, oracle_logits, pack, relative

LENGTHS = [9, 33, 1, 9, 9, 17]


def all_logits(model, docs):
    batch = pack(docs, [list(range(len(d))) for d in docs])
    return model.head(model.hidden(batch)).split([len(d) for d in docs])


@pytest.mark.known_bug("PK1", "PK3", "CE5", "RO")
def test_logits_equal_transformers(arch_model, arch_folder):
    assert isinstance(arch_model, Decoder)
    docs = documents(LENGTHS)
    with torch.no_grad():
        for got, want in zip(all_logits(arch_model, docs), oracle_logits(oracle(arch_folder), docs), strict=True):
            assert relative(got, want) < 1e-5


@pytest.mark.known_bug("PK3")
def test_documents_of_one_token_stay_apart(matrix_folder):
    """Their positions are 0, 0, 0: only the bounds tell them apart, and the bounds are what counts."""
    folder, docs = matrix_folder("llama-gqa-tied"), documents([1, 1, 1, 6, 1])
    with torch.no_grad():
        wanted = oracle_logits(oracle(folder), docs)
        for got, want in zip(all_logits(load_model(folder), docs), wanted, strict=True):
            assert relative(got, want) < 1e-5


def test_gradients_equal_transformers(arch_model, arch_folder):
    docs, reference = documents([9, 33, 17, 17]), oracle(arch_folder)
    keep = [[3, 4, 5], list(range(12, 32)), [0, 7, 16], []]
    batch = pack(docs, keep)
    targets = torch.as_tensor(batch.targets_K.astype("int64"))
    F.cross_entropy(arch_model.head(arch_model.hidden(batch)), targets, reduction="sum").backward()
    kept = torch.cat([x[k] for x, k in zip(oracle_logits(reference, docs), keep, strict=True) if k])
    F.cross_entropy(kept, targets, reduction="sum").backward()
    wanted = dict(reference.named_parameters())
    got = dict(arch_model.named_parameters())
    assert got.keys() == wanted.keys()
    for name, parameter in got.items():
        assert relative(parameter.grad, wanted[name].grad) < 1e-5, name


@pytest.mark.known_bug("PK1")
def test_documents_do_not_see_each_other(arch_model):
    """Perturbing one document leaves every other one's logits bitwise equal, and its gradient does not reach them."""
    docs = documents(LENGTHS)
    changed = [*docs[:1], documents([33], seed=9)[0], *docs[2:]]
    with torch.no_grad():
        before, after = all_logits(arch_model, docs), all_logits(arch_model, changed)
    for i, (a, b) in enumerate(zip(before, after, strict=True)):
        assert torch.equal(a, b) == (i != 1)


def test_pruning_to_kept_positions_is_exact(arch_model):
    docs = documents([9, 33, 1, 17])
    with torch.no_grad():
        full = all_logits(arch_model, docs)
        for keep in ([[8], [32], [0], [16]], [[], [1, 5, 30], [], [2, 3]], [list(range(8)), [], [0], list(range(5))]):
            pruned = arch_model.head(arch_model.hidden(pack(docs, keep)))
            want = torch.cat([x[k] for x, k in zip(full, keep, strict=True)])
            assert relative(pruned, want) < 1e-5


def test_nothing_kept_is_empty(matrix_folder):
    model = load_model(matrix_folder("llama-gqa-tied"))
    hidden = model.hidden(pack(documents([4, 5]), [[], []]))
    assert hidden.shape == (0, 48) and model.head(hidden).shape == (0, 101)


def test_bad_bounds_are_refused(matrix_folder):
    model = load_model(matrix_folder("llama-gqa-tied"))
    good = pack(documents([4, 5]))
    for changes in (
        {"cu_seqlens": [0, 4, 4, 9]},
        {"cu_seqlens": [1, 9]},
        {"cu_seqlens": [0, 4]},
        {"keep_K": [3, 1]},
        {"keep_K": [9]},
    ):
        with pytest.raises(ValueError):
            model.hidden(type(good)(**{**vars(good), **changes}))


def test_half_precision_stays_close(matrix_folder):
    docs = documents([9, 33])
    for name in ("llama-gqa-tied", "gemma2"):
        exact, half = load_model(matrix_folder(name)), load_model(matrix_folder(name), dtype="bfloat16")
        with torch.no_grad():
            for a, b in zip(all_logits(half, docs), all_logits(exact, docs), strict=True):
                assert a.dtype == torch.bfloat16 and relative(a.float(), b) < 0.1


@pytest.mark.known_bug("CE4")
def test_a_replaced_linear_is_called(matrix_folder):
    """Adapters swap nn.Linear modules in place; the decoder must go through whatever stands there."""

    class Doubled(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base

        def forward(self, x):
            return 2 * self.base(x)

    for name in ("llama-gqa-tied", "phi3"):
        model = load_model(matrix_folder(name))
        docs, changed = documents([9, 5]), load_model(matrix_folder(name))
        for module_name, module in model.linear_modules().items():
            parent = model.get_submodule(module_name.rpartition(".")[0])
            setattr(parent, module_name.rpartition(".")[2], Doubled(module))
        with torch.no_grad():
            for layer in changed.linear_modules().values():
                layer.weight = torch.nn.Parameter(layer.weight * 2)
            for a, b in zip(all_logits(model, docs), all_logits(changed, docs), strict=True):
                assert relative(a, b) < 1e-5

"""The head in slices: same loss and gradients as in one piece, and never more logits in memory than a slice."""

import pytest
import torch
from torch import nn

from luthier.losses import head
from luthier.losses.head import head_loss_sum, policy_logps, token_logps
from luthier.losses.sft import sft_loss_sum

K, D, V = 70, 24, 500


class _Headed(nn.Module):
    """A head with a soft cap, as Gemma has one; counts the rows of logits that it made at a time."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lm_head = nn.Linear(D, V, bias=False).requires_grad_(False)
        self.most_rows = 0

    def head(self, hidden_KD):
        self.most_rows = max(self.most_rows, len(hidden_KD))
        return torch.tanh(self.lm_head(hidden_KD) / 5.0) * 5.0


@pytest.fixture(params=[1, 16, 69, 70])
def rows_a_slice(request, monkeypatch):
    """Slices of one row, of some, of all but one, and all in one."""
    monkeypatch.setattr(head, "CHUNK_BYTES", request.param * 4 * V)
    return request.param


@pytest.mark.known_bug("CE3", "CE5")
def test_equals_one_piece(rows_a_slice):
    """Loss, and gradient scaled as a step scales it (divided by the trained tokens)."""
    model, targets = _Headed(), torch.randint(0, V, (K,))
    hidden = torch.randn(K, D, requires_grad=True)
    loss = head_loss_sum(model, sft_loss_sum, hidden, targets)
    (gradient,) = torch.autograd.grad(loss / K, hidden)
    assert model.most_rows == rows_a_slice
    double = hidden.detach().double().requires_grad_()
    logits = torch.tanh(double @ model.lm_head.weight.double().t() / 5.0) * 5.0
    expected = nn.functional.cross_entropy(logits, targets, reduction="sum")
    (expected_gradient,) = torch.autograd.grad(expected / K, double)
    assert abs(loss / expected - 1) < 1e-6
    assert (gradient - expected_gradient).abs().max() < 2e-6 * expected_gradient.abs().max()
    with torch.no_grad():
        assert abs(head_loss_sum(model, sft_loss_sum, hidden, targets) / expected - 1) < 1e-6


@pytest.mark.parametrize("logps_of", [token_logps, lambda *handed: policy_logps(*handed)[0]], ids=["token", "policy"])
def test_log_probabilities_in_slices_equal_one_piece(rows_a_slice, logps_of):
    """Values, and the gradient of a loss that weighs every position its own way, as pairs and advantages do."""
    model, targets, weights = _Headed(), torch.randint(0, V, (K,)), torch.randn(K)
    hidden = torch.randn(K, D, requires_grad=True)
    logps = logps_of(model, hidden, targets)
    (gradient,) = torch.autograd.grad(logps @ weights, hidden)
    assert model.most_rows == rows_a_slice
    expected = model.head(hidden).log_softmax(-1)[torch.arange(K), targets]
    torch.testing.assert_close(logps, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected @ weights, hidden)[0])


def test_inside_a_larger_backward_leaves_are_counted_once(rows_a_slice):
    """CE9: a parameter below the hidden states gets its gradient once, not once more per slice."""
    model, targets = _Headed(), torch.randint(0, V, (K,))
    below = nn.Linear(D, D)
    x = torch.randn(K, D)
    head_loss_sum(model, sft_loss_sum, below(x), targets).backward()
    ours = below.weight.grad.clone()
    below.zero_grad()
    sft_loss_sum(model.head(below(x)), targets).backward()
    torch.testing.assert_close(ours, below.weight.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.known_bug("CE4", "CE9")
def test_a_trained_head_gets_its_gradient(rows_a_slice):
    """CE4, CE9: a path that forms gradients early must neither starve the head nor give it its gradient twice."""
    model, targets = _Headed(), torch.randint(0, V, (K,))
    model.lm_head.requires_grad_(True)
    hidden = torch.randn(K, D, requires_grad=True)
    (head_loss_sum(model, sft_loss_sum, hidden, targets) / K).backward()
    (expected,) = torch.autograd.grad(sft_loss_sum(model.head(hidden), targets) / K, model.lm_head.weight)
    torch.testing.assert_close(model.lm_head.weight.grad, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.known_bug("CE3")
def test_half_precision_hidden_states(rows_a_slice):
    """CE3: bfloat16 states and head: a float32 loss, a bfloat16 gradient, both close to the float64 ones; without
    gradients the same loss.
    """
    model, targets = _Headed().bfloat16(), torch.randint(0, V, (K,))
    hidden = torch.randn(K, D).bfloat16().requires_grad_()
    loss = head_loss_sum(model, sft_loss_sum, hidden, targets)
    (gradient,) = torch.autograd.grad(loss / K, hidden)
    assert loss.dtype is torch.float32 and gradient.dtype is torch.bfloat16
    double = hidden.detach().double().requires_grad_()
    logits = torch.tanh(double @ model.lm_head.weight.double().t() / 5.0) * 5.0
    expected = nn.functional.cross_entropy(logits, targets, reduction="sum")
    (expected_gradient,) = torch.autograd.grad(expected / K, double)
    assert abs(loss / expected - 1) < 1e-3
    assert (gradient - expected_gradient).abs().max() < 0.02 * expected_gradient.abs().max()
    with torch.no_grad():
        assert abs(head_loss_sum(model, sft_loss_sum, hidden, targets) / expected - 1) < 1e-3

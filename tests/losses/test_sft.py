"""Supervised loss against torch's own cross entropy, masked and shifted in the usual way."""

import torch
import torch.nn.functional as F

from luthier.losses.sft import sft_loss_sum


def test_equals_masked_shifted_cross_entropy():
    """Kept positions only == full logits with ignore_index -100: same value, same gradient, same denominator (B3)."""
    torch.manual_seed(0)
    logits = torch.randn(2, 9, 50, requires_grad=True)
    ids = torch.randint(0, 50, (2, 9))
    trained = torch.rand(2, 9) < 0.5
    trained[:, 0] = False
    labels = ids.masked_fill(~trained, -100)
    expected = F.cross_entropy(logits[:, :-1].reshape(-1, 50), labels[:, 1:].reshape(-1), ignore_index=-100)
    (grad,) = torch.autograd.grad(expected, logits)

    keep = trained[:, 1:]
    got = sft_loss_sum(logits[:, :-1][keep], ids[:, 1:][keep]) / int(trained.sum())
    (got_grad,) = torch.autograd.grad(got, logits)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(got_grad, grad, rtol=1e-5, atol=1e-8)


def test_half_precision_logits_are_summed_in_float32():
    """bfloat16 logits: the loss is that of the same logits in float32, exactly."""
    torch.manual_seed(2)
    logits, targets = torch.randn(7, 40).bfloat16(), torch.randint(0, 40, (7,))
    assert sft_loss_sum(logits, targets).dtype is torch.float32
    assert torch.equal(sft_loss_sum(logits, targets), sft_loss_sum(logits.float(), targets))

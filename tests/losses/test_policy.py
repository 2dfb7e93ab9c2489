"""The share of tokens that the clip holds, against what the loss itself lets through."""

from types import SimpleNamespace

import torch

from luthier.losses.policy import ADVANTAGE, OLD, PolicyLoss, clipped


def test_held_are_the_tokens_whose_gradient_the_clip_stops():
    loss = PolicyLoss("dapo", low=0.2, high=0.3)
    ratio_K = torch.tensor([1.4, 1.4, 0.7, 0.7, 1.25, 0.9, 1.0, 1.5])
    columns = {OLD: torch.zeros(8), ADVANTAGE: torch.tensor([1.0, -1, -1, 1, 1, -1, 1, 1])}
    logps_K = ratio_K.log().requires_grad_()
    clipped(logps_K, columns[OLD], columns[ADVANTAGE], loss.low, loss.high).sum().backward()
    stopped_K = (logps_K.grad == 0).float()
    assert stopped_K.tolist() == [1, 0, 1, 0, 0, 0, 0, 1]
    assert torch.equal(loss._held(logps_K.detach(), SimpleNamespace(columns=columns)), stopped_K)

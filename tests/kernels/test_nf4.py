"""4-bit NormalFloat against a plain reading of the paper, weight by weight: codes, blocks, doubly quantised scales."""

import itertools

import numpy as np
import pytest
import torch

from luthier.kernels.nf4 import LEVELS, Nf4Weight

BLOCK, SCALE_BLOCK = 64, 256


def by_the_paper(weight_OI: np.ndarray) -> np.ndarray:
    """float64: the nearest level times the block's scale; scales less their mean as 8-bit integers, 256 together."""
    scales = {
        (row, low): np.abs(weight_OI[row, low : low + BLOCK]).max()
        for row, low in itertools.product(range(len(weight_OI)), range(0, weight_OI.shape[1], BLOCK))
    }
    mean, kept = np.mean(list(scales.values())), {}
    for number in range(0, len(scales), SCALE_BLOCK):
        group = list(scales.items())[number : number + SCALE_BLOCK]
        step = max(abs(scale - mean) for _, scale in group) / 127
        kept |= {key: np.round((scale - mean) / step) * step + mean if step else mean for key, scale in group}
    rounded = np.empty_like(weight_OI)
    for row, column in np.ndindex(*weight_OI.shape):
        scale = kept[row, column // BLOCK * BLOCK]
        level = min(LEVELS, key=lambda level: abs(level * scale - weight_OI[row, column]))
        rounded[row, column] = level * scale
    return rounded


@pytest.mark.known_bug("QN")
@pytest.mark.parametrize(("num_out", "width"), [(1, 1), (3, 64), (5, 130), (70, 257), (17, 31)])
def test_codes_blocks_and_scales_fit_together(num_out, width):
    """Sides that are multiples of nothing, more scales than one group holds, and both products; whole and in part."""
    weight = torch.randn(num_out, width, generator=torch.Generator().manual_seed(width))
    kept = Nf4Weight(weight)
    rounded = torch.tensor(by_the_paper(weight.double().numpy()))
    assert (kept.dequantised() - rounded).abs().max() < 1e-5
    x, dy = torch.randn(6, width), torch.randn(6, num_out)
    torch.testing.assert_close(kept.times(x, None).double(), x.double() @ rounded.t(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(kept.times_back(dy).double(), dy.double() @ rounded, rtol=1e-4, atol=1e-4)
    low = num_out // 2
    assert torch.equal(kept.rows(low, num_out).dequantised(), kept.dequantised()[low:])


@pytest.mark.known_bug("QN")
def test_a_matrix_is_rounded_the_same_whatever_lies_beside_it():
    """A stack of three, one of them a hundred times larger; and the twin in torch writes the same numbers."""
    weights = [torch.randn(rows, 96) * size for rows, size in ((16, 1.0), (7, 100.0), (5, 0.01))]
    stack = Nf4Weight(*weights)
    assert torch.equal(stack.dequantised(), torch.cat([Nf4Weight(weight).dequantised() for weight in weights]))
    assert torch.equal(stack.rows(16, 28).dequantised(), stack.dequantised()[16:])
    compiled, stack.held = stack.dequantised(), stack.held.t().contiguous().t()  # the twin's case
    assert torch.equal(stack.dequantised(), compiled)

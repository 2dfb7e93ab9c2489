"""DoRA (arXiv 2402.09353): y = m / ||W + s B A|| * (x W' + s x A' B') + b, row by row of W; m is trained too.

The norm is a constant to the gradient, as in the paper (section 4.3). It changes only when A and B do, so it is worked
out once for every backward pass, in float32 and without forming B A:
||w + s b A||^2 = ||w||^2 + 2 s b (A w') + s^2 b A A' b'.
PEFT forms B A and two further matrices of W's size in every forward pass. A row of W that is all zeros has no
direction: there the norm counts as one (PEFT divides zero by zero).
With dropout only the update's input is dropped; PEFT's layer drops a part of the base's too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from luthier.adapters.lora import LoraLinear, LowRankModel, put_low_rank
from luthier.config.adapter import AdapterSpec
from luthier.kernels.frozen_gemm import times_weight

TINY = 1e-12


class DoraLinear(LoraLinear):
    """A LoRA layer with a trained magnitude for each row."""

    def make_parameters(self) -> None:
        """A, B and the magnitudes, which start as the norms of the weight's rows."""
        super().make_parameters()
        weight_OI = self.frozen().dequantised()
        self._squares_O = weight_OI.square().sum(1)
        self._has_rows_of_zeros = bool((self._squares_O <= TINY).any())
        self._norm: tuple[tuple[int, int], Tensor] | None = None
        start_O = self._squares_O.sqrt()
        self.lora_magnitude_vector = nn.Parameter(torch.where(self._squares_O > TINY, start_O, 1.0))
        # An update follows a backward pass. Versions alone do not tell: fused optimizers leave them as they are.
        self.lora_magnitude_vector.register_post_accumulate_grad_hook(self._forget_norm)

    def gain(self) -> Tensor | None:
        """m over the norm, while the adapter is on."""
        return self.lora_magnitude_vector / self.norms() if self.enabled else None

    def _forget_norm(self, parameter: Tensor) -> None:
        del parameter
        self._norm = None

    @torch.no_grad()
    def norms(self) -> Tensor:
        """(O,): the norm of every row of W + s B A, float32; the same tensor until A or B change."""
        version = (self.lora_A._version, self.lora_B._version)
        if self._norm is None or self._norm[0] != version:
            a_RI, b_OR = self.lora_A.detach().float(), self.lora_B.detach().float()
            across_OR = times_weight(self.frozen().dequantised(), a_RI)
            cross_O = 2 * self.scale * (across_OR * b_OR).sum(1)
            own_O = self.scale**2 * ((b_OR @ (a_RI @ a_RI.t())) * b_OR).sum(1)
            norm_O = (self._squares_O + cross_O + own_O).clamp_min(TINY).sqrt()
            if self._has_rows_of_zeros:
                norm_O = torch.where(self._squares_O > TINY, norm_O, 1.0)
            self._norm = (version, norm_O)
        return self._norm[1]

    @torch.no_grad()
    def peft_magnitude(self) -> Tensor:
        """The magnitude as PEFT divides it: by the norm in rows of zeros too."""
        if not self._has_rows_of_zeros:
            return self.lora_magnitude_vector
        update_O = (self.scale * (self.lora_B @ self.lora_A)).norm(dim=1)
        return torch.where(self._squares_O > TINY, self.lora_magnitude_vector, self.lora_magnitude_vector * update_O)

    @torch.no_grad()
    def set_peft_magnitude(self, magnitude_O: Tensor) -> None:
        """The inverse of `peft_magnitude`, once A and B are in place."""
        self.lora_magnitude_vector.copy_(magnitude_O)
        if self._has_rows_of_zeros:
            update_O = (self.scale * (self.lora_B @ self.lora_A)).norm(dim=1)
            undone_O = torch.where(update_O > 0, magnitude_O / update_O, 1.0)
            self.lora_magnitude_vector.copy_(torch.where(self._squares_O > TINY, magnitude_O, undone_O))


def apply_dora(model: nn.Module, spec: AdapterSpec, *, seed: int) -> LowRankModel:
    """dora and qdora. Raises as put_low_rank."""
    return LowRankModel(model, spec, put_low_rank(model, spec, seed=seed, make=DoraLinear))

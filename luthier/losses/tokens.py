"""Losses whose unit is the trained token and that see more than logits and targets: weights, a second model, noise.

One class, because its parts combine: cross entropy (smoothed, weighted), plus a divergence from a second model at the
same positions. The second model is a teacher, or the base itself with the adapters off: then the divergence holds the
tune near its base. NEFTune (arXiv 2310.05914) adds noise to the embeddings of a training pass, uniform in
+-alpha / sqrt(tokens of the document x hidden size); a prefix that rows share gets one draw for all of them.
Shapes: T packed tokens, K trained positions, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from luthier.losses.divergence import divergence
from luthier.losses.head import each_in_slices, head_loss_sum, sum_in_slices
from luthier.losses.loss import Objective, Sums
from luthier.losses.sft import sft_loss_sum, sft_losses, smoothed_sft_sum
from luthier.types import Batch


class SecondModel(Protocol):
    """What the student is compared with: logits = head(hidden(batch)), without gradients."""

    def hidden(self, batch: Batch) -> Tensor:
        """Hidden states at batch.keep_K."""
        ...

    def head(self, hidden_KD: Tensor) -> Tensor:
        """Logits of hidden states."""
        ...


@dataclass(frozen=True)
class TokenLoss(Objective):
    """nll x cross entropy + pull x divergence from `second`, per trained token.

    weighted: each token counts as batch.columns["weights_K"] says, in the sum and in the divisor.
    """

    nll: float = 1.0
    smoothing: float = 0.0
    weighted: bool = False
    pull: float = 0.0
    divergence: str = "forward_kl"
    temperature: float = 1.0
    js_beta: float = 0.5
    second: SecondModel | None = None
    noise_alpha: float = 0.0
    unit = "token"

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        """The columns it reads."""
        return ("weights_K",) if self.weighted else ()

    def count(self, batch: Batch) -> float:
        """Trained tokens, or the sum of their weights."""
        return float(batch.columns["weights_K"].sum()) if self.weighted else batch.num_trained

    def sums(self, model: Any, batch: Batch) -> Sums:
        """One forward pass of the student, and one of the second model where there is one."""
        with noisy_embeddings(model, batch, self.noise_alpha):
            hidden_KD = model.hidden(batch)
        total = self._nll_sum(model, hidden_KD, batch) if self.nll else hidden_KD.new_zeros(())
        if self.second is None:
            return Sums(total)
        apart = self._apart_sum(self.second, model, hidden_KD, batch)
        return Sums(total + self.pull * apart)

    def _nll_sum(self, model: Any, hidden_KD: Tensor, batch: Batch) -> Tensor:
        if self.weighted:

            def part(hidden: Tensor, place: slice) -> Tensor:
                losses_K = sft_losses(model.head(hidden), batch.targets_K[place], self.smoothing)
                return (losses_K * batch.columns["weights_K"][place]).sum()

            return self.nll * sum_in_slices(model, part, hidden_KD)
        if self.smoothing:
            return self.nll * head_loss_sum(model, self._smoothed, hidden_KD, batch.targets_K)
        return self.nll * head_loss_sum(model, sft_loss_sum, hidden_KD, batch.targets_K)

    def _smoothed(self, logits_KV: Tensor, targets_K: Tensor) -> Tensor:
        return smoothed_sft_sum(logits_KV, targets_K, self.smoothing)

    def _apart_sum(self, second: SecondModel, model: Any, hidden_KD: Tensor, batch: Batch) -> Tensor:
        with torch.no_grad():
            other_KD = second.hidden(batch)

        def part(hidden: Tensor, place: slice) -> Tensor:
            with torch.no_grad():
                teacher_KV = second.head(other_KD[place])
            each_K = divergence(self.divergence, model.head(hidden), teacher_KV, self.temperature, self.js_beta)
            return (each_K * batch.columns["weights_K"][place]).sum() if self.weighted else each_K.sum()

        return sum_in_slices(model, part, hidden_KD)


def distances(model: Any, second: SecondModel, batch: Batch) -> Tensor:
    """(K,) KL(model || second) in nats over the whole vocabulary at every kept position, without gradients."""
    with torch.no_grad():
        other_KD = second.hidden(batch)
        return each_in_slices(
            model,
            lambda hidden, place: divergence("reverse_kl", model.head(hidden), second.head(other_KD[place])),
            model.hidden(batch),
        )


@contextmanager
def noisy_embeddings(model: Any, batch: Batch, alpha: float) -> Iterator[None]:
    """Inside, a model in training mode embeds with NEFTune's noise; nothing happens for alpha 0 or in eval mode."""
    with nullcontext() if not alpha or not model.training else _hooked(_embedding(model), batch, alpha):
        yield


@contextmanager
def _hooked(embedding: nn.Embedding, batch: Batch, alpha: float) -> Iterator[None]:
    bounds = batch.cu_seqlens.long()
    packed_T = (bounds[1:] - bounds[:-1]).repeat_interleave(bounds[1:] - bounds[:-1])

    def add(_: nn.Module, inputs: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
        # A model that runs document by document embeds one at a time; ours embeds the whole pack.
        ids = inputs[0]
        lengths = packed_T if ids.dim() == 1 else torch.full_like(ids, ids.shape[-1])
        reach = alpha / (lengths * embedded.shape[-1]).float().sqrt()
        noise = torch.empty_like(embedded).uniform_(-1.0, 1.0)
        return embedded + noise * reach.unsqueeze(-1).to(embedded.dtype)

    handle = embedding.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def _embedding(model: Any) -> nn.Embedding:
    """The token embedding: the largest table of the model (positions have fewer rows)."""
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    return max(tables, key=lambda table: table.num_embeddings)

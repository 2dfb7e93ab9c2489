"""What the rest of luthier may expect of a model: the packed training forward, and incremental decoding in slots.

Shape legend: T packed tokens, K kept positions, D hidden size, V vocabulary, N active slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from luthier.types import Batch


class DecodeSession(Protocol):
    """Key/value caches of several rows that decode together. Slots 0 .. N-1 are active; the caller keeps them dense."""

    def fill(self, slots: Sequence[int], suffixes: Sequence[Sequence[int]]) -> torch.Tensor:
        """Starts rows, prompt = prefix + suffix (>= 1 token); float32 logits (len(slots), V) of what follows."""
        ...

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Appends one token to each of slots 0 .. len(tokens) - 1; float32 logits (len(tokens), V) of what follows."""
        ...

    def move(self, source: int, target: int) -> None:
        """Makes slot `target` what slot `source` is (used to close gaps)."""
        ...


class PackedModel(Protocol):
    """A causal language model as luthier uses it; an nn.Module whose parameter names are Hugging Face's.

    note: '' or what the user should know (slower path, untied head). config: the folder's config.json.
    shares_prefixes: whether a batch with parents_D is computed once per prefix (else once per row, same numbers).
    """

    note: str
    config: dict[str, Any]
    training: bool

    @property
    def shares_prefixes(self) -> bool: ...

    def hidden(self, batch: Batch) -> torch.Tensor:
        """Hidden states after the last norm at batch.keep_K, (K, D). Documents never see each other."""
        ...

    def head(self, hidden_KD: torch.Tensor) -> torch.Tensor:
        """Logits (K, V) of hidden states, soft cap applied."""
        ...

    def session(self, *, num_slots: int, capacity: int, prefix: Sequence[int], length_class: int) -> DecodeSession:
        """Caches for rows of at most `capacity` tokens beyond the shared prefix, which is computed here, once."""
        ...

    def length_class(self, num_tokens: int) -> int:
        """Rows of one session must agree on this (it is 0 but for models whose positions depend on the length)."""
        ...

    def linear_modules(self) -> dict[str, nn.Linear]:
        """Every nn.Linear by its Hugging Face module name, the output head included."""
        ...

    @property
    def num_parameters(self) -> int:
        """Number of distinct parameters (a tied head counts once)."""
        ...

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of cache that one token of one row takes."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """As of nn.Module."""
        ...

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """As of nn.Module."""
        ...

    def train(self, mode: bool = True) -> Any:
        """As of nn.Module."""
        ...

    def eval(self) -> Any:
        """As of nn.Module."""
        ...


def as_ids(values: Any, device: torch.device) -> torch.Tensor:
    """int64 tensor on `device` from a numpy array (any integer type), a sequence or a tensor."""
    return torch.as_tensor(values).to(device=device, dtype=torch.long)

"""Every architecture that the decoder does not know, through transformers: slower, correct, and it says so.

Each document runs by itself (use_cache=False, no attention mask, explicit position ids), because what transformers
infers about packed rows depends on those switches and differs between architectures. The head cannot be split off in
general (logit scales, soft caps), so `hidden` already returns logits at the kept positions and `head` passes them on.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from luthier.errors import BaseModelError
from luthier.models.family import unshared
from luthier.models.packed import as_ids
from luthier.types import Batch


def load_other(folder: Path, config: dict[str, Any], dtype: torch.dtype, *, reason: str) -> TransformersModel:
    """A TransformersModel in eval mode. Raises BaseModelError when transformers cannot load all of it, offline."""
    try:  # transformers is loaded only for a model that needs it: it is half a second of every start
        loaded: Any = importlib.import_module("transformers").AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, ImportError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0][:300]  # further lines list what it does know
        message = f"{folder}: luthier's decoder cannot run it ({reason}), and neither can transformers: {first}"
        raise BaseModelError(message, hint="choose a base of a known architecture") from error
    model, info = loaded
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(what):
            shown = ", ".join(sorted(map(str, info[what]))[:3])
            raise BaseModelError(f"{folder}: {what.replace('_', ' ')}: {shown}", hint="copy the model folder again")
    note = f"runs through transformers, slower than luthier's own decoder: {reason}"
    return TransformersModel(model, config, note).eval()


class TransformersModel(nn.Module):
    """A transformers causal LM behind luthier.models.packed.PackedModel, one document at a time."""

    shares_prefixes = False
    inner: Any  # the transformers model; nn.Module's attribute typing would call it "Tensor | Module"

    def __init__(self, model: nn.Module, config: dict[str, Any], note: str) -> None:
        super().__init__()
        # The wrapper shows the wrapped model's own children: names stay Hugging Face's, and a module that an adapter
        # replaces here is replaced there. The model itself is kept out of the module tree (it would add a prefix).
        for store in ("_modules", "_parameters", "_buffers"):
            self.__dict__[store] = getattr(model, store)
        self.__dict__["inner"] = model
        self.config, self.note = config, note
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def train(self, mode: bool = True) -> TransformersModel:
        """As of nn.Module, for the wrapped model too."""
        self.inner.training = mode
        return super().train(mode)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def hidden(self, batch: Batch) -> torch.Tensor:
        """Logits (K, V) at batch.keep_K, in order: what `head` expects. A shared prefix is computed for every row."""
        batch = unshared(batch)
        ids_T, keep_K = as_ids(batch.ids_T, self.device), as_ids(batch.keep_K, self.device)
        bounds = torch.as_tensor(batch.cu_seqlens).tolist()
        logits = []
        for start, stop in itertools.pairwise(bounds):
            keep = keep_K[(keep_K >= start) & (keep_K < stop)] - start
            if len(keep):
                logits.append(self._logits(ids_T[start:stop], keep))
        return torch.cat(logits) if logits else self._logits(ids_T[:1], keep_K[:0])

    def _logits(self, ids_L: torch.Tensor, keep_K: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(len(ids_L), device=self.device)[None]
        if self._keeps_logits and len(keep_K):
            kwargs: dict[str, Any] = {"logits_to_keep": keep_K}
        else:
            kwargs = {}
        if "position_ids" in inspect.signature(self.inner.forward).parameters:
            kwargs["position_ids"] = positions
        logits = self.inner(input_ids=ids_L[None], use_cache=False, **kwargs).logits[0]
        return logits if "logits_to_keep" in kwargs else logits[keep_K]

    def head(self, hidden_KD: torch.Tensor) -> torch.Tensor:
        """Unchanged: `hidden` went through the head already."""
        return hidden_KD

    def session(
        self, *, num_slots: int, capacity: int, prefix: Sequence[int], length_class: int
    ) -> TransformersSession:
        """Caches for num_slots rows; `capacity` and `length_class` need nothing here."""
        del capacity, length_class
        return TransformersSession(self.inner, self.device, num_slots, list(prefix))

    def length_class(self, num_tokens: int) -> int:
        """0: transformers minds its own positions."""
        del num_tokens
        return 0

    def linear_modules(self) -> dict[str, nn.Linear]:
        """Every nn.Linear by module name."""
        return {name: module for name, module in self.named_modules() if isinstance(module, nn.Linear)}

    @property
    def num_parameters(self) -> int:
        """Distinct parameters."""
        return sum(p.numel() for p in self.parameters())

    @property
    def kv_bytes_per_token(self) -> int:
        """0: unknown, and rows are cached one by one."""
        return 0


class TransformersSession:
    """Rows decoded one by one with the architecture's own cache, or without one where it has none."""

    def __init__(self, model: nn.Module, device: torch.device, num_slots: int, prefix: list[int]) -> None:
        self.model, self.device, self.prefix = model, device, prefix
        self.rows: list[list[int]] = [[] for _ in range(num_slots)]
        self.caches: list[Any] = [None] * num_slots

    @torch.inference_mode()
    def fill(self, slots: Sequence[int], suffixes: Sequence[Sequence[int]]) -> torch.Tensor:
        """Starts rows; logits (len(slots), V) float32 of the token that follows each."""
        for slot, suffix in zip(slots, suffixes, strict=True):
            self.rows[slot], self.caches[slot] = [*self.prefix, *suffix], None
        return torch.stack([self._advance(slot) for slot in slots])

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Appends one token to each of slots 0 .. N - 1; logits (N, V) float32 of what follows."""
        for slot, token in enumerate(tokens):
            self.rows[slot].append(token)
        return torch.stack([self._advance(slot) for slot in range(len(tokens))])

    def _advance(self, slot: int) -> torch.Tensor:
        cache = self.caches[slot]
        ids = self.rows[slot] if cache is None else self.rows[slot][-1:]
        kwargs = {} if cache is None else {"past_key_values": cache}
        out = self.model(input_ids=torch.tensor([ids], device=self.device), use_cache=True, **kwargs)
        self.caches[slot] = getattr(out, "past_key_values", None)
        return out.logits[0, -1].float()

    def move(self, source: int, target: int) -> None:
        """Makes slot `target` what slot `source` is."""
        self.rows[target], self.caches[target] = self.rows[source], self.caches[source]
        self.rows[source], self.caches[source] = [], None

"""Incremental decoding: preallocated key/value caches in slots, a prefix stored once for all rows, packed prefill.

A few-shot prompt is mostly the same for every row. Its keys and values are computed once and kept once; in each step
all rows attend to it with one matrix product per key/value head, and to their own tokens in another, under one softmax.

Shape legend: N active slots, H query heads, G key/value heads, J = H / G, C head_dim, P prefix length, S longest row,
V vocabulary, T packed tokens of a prefill.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from luthier.models.attention import PackedAttention, Prefix, plan_pack
from luthier.models.soft_prompt import soft_prefix

if TYPE_CHECKING:
    from luthier.models.decoder import Decoder

# A prefill forward holds a few activations of (tokens, ffn): 4096 tokens keep that small and the GEMMs large.
_PREFILL_TOKENS = 4096


class DecoderSession:
    """Caches of one Decoder. Implements luthier.models.packed.DecodeSession; runs without gradients."""

    def __init__(
        self, model: Decoder, *, num_slots: int, capacity: int, prefix: Sequence[int], length_class: int
    ) -> None:
        spec = model.spec
        self.model, self.spec, self.capacity, self.length_class = model, spec, capacity, length_class
        shape = (num_slots, spec.num_kv_heads, capacity, spec.head_dim)
        # Zeros, not empty: a masked position has weight 0, and 0 * NaN would still be NaN.
        self.keys = [torch.zeros(shape, dtype=model.dtype, device=model.device) for _ in range(spec.num_layers)]
        self.values = [torch.zeros_like(keys) for keys in self.keys]
        self.lengths = [0] * num_slots
        self.prefix = Prefix([], [])
        with torch.inference_mode():
            self.prefix = soft_prefix(model.prompt)
            virtual = range(0 if model.prompt is None or model.prompt.per_layer else model.prompt.num_tokens)
            if ids := [*(spec.vocab_size + i for i in virtual), *prefix]:
                self.prefix = self._prefix_of(ids)

    def _rope(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        num_positions = self.prefix.length + self.capacity
        return self.model.rope.rows(positions.to(self.model.device), num_positions, self.model.dtype, self.length_class)

    def _prefix_of(self, ids: Sequence[int]) -> Prefix:
        """Keys and values of `ids` behind the prefix so far, and those of it."""
        before = self.prefix.length
        recorder = _Recorder(self._attention([len(ids)], keep=[len(ids) - 1], prefix=self.prefix))
        positions = torch.arange(before, before + len(ids), device=self.model.device)
        num_positions = before + len(ids) + self.capacity
        rope = self.model.rope.rows(positions, num_positions, self.model.dtype, self.length_class)
        ids_T = torch.tensor(ids, device=self.model.device)
        self.model.run(ids_T, rope, recorder, recorder.inner.plan.keep_K)
        keys, values = ([x.transpose(0, 1).contiguous() for x in xs] for xs in (recorder.keys, recorder.values))
        if before:
            keys = [torch.cat(both, dim=1) for both in zip(self.prefix.keys, keys, strict=True)]
            values = [torch.cat(both, dim=1) for both in zip(self.prefix.values, values, strict=True)]
        return Prefix(keys, values)

    def _attention(self, lengths: list[int], keep: list[int], prefix: Prefix | None) -> PackedAttention:
        bounds = torch.tensor([0, *lengths]).cumsum(0)
        plan = plan_pack(bounds, torch.tensor(keep, device=self.model.device))
        spec = self.spec
        return PackedAttention(plan, spec.windows, spec.attention_scale, spec.attention_soft_cap, prefix)

    @torch.inference_mode()
    def fill(self, slots: Sequence[int], suffixes: Sequence[Sequence[int]]) -> torch.Tensor:
        """Starts rows; logits (len(slots), V) float32 of the token that follows each. A suffix that several rows have
        (a prompt that is answered several times) is computed once.
        """
        members: dict[tuple[int, ...], list[int]] = {}
        for place, suffix in enumerate(suffixes):
            members.setdefault(tuple(suffix), []).append(place)
        distinct, logits, first = list(members), [], 0
        while first < len(distinct):
            stop, num_tokens = first, 0
            while stop < len(distinct) and (stop == first or num_tokens + len(distinct[stop]) <= _PREFILL_TOKENS):
                num_tokens += len(distinct[stop])
                stop += 1
            of_each = [[slots[place] for place in members[suffix]] for suffix in distinct[first:stop]]
            logits.append(self._fill_packed(of_each, distinct[first:stop]))
            first = stop
        which = {place: number for number, places in enumerate(members.values()) for place in places}
        return torch.cat(logits)[[which[place] for place in range(len(slots))]]

    def _fill_packed(self, slots: Sequence[Sequence[int]], suffixes: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """Computes every suffix once and puts it into each of its slots; logits (len(suffixes), V)."""
        lengths = [len(suffix) for suffix in suffixes]
        stops = torch.tensor(lengths).cumsum(0).tolist()
        recorder = _Recorder(self._attention(lengths, [stop - 1 for stop in stops], self.prefix))
        ids_T = torch.tensor([i for suffix in suffixes for i in suffix], device=self.model.device)
        positions = torch.cat([torch.arange(length) for length in lengths]) + self.prefix.length
        hidden = self.model.run(ids_T, self._rope(positions), recorder, recorder.inner.plan.keep_K)
        for cache, packed in ((self.keys, recorder.keys), (self.values, recorder.values)):
            for layer_cache, rows in zip(cache, packed, strict=True):
                for own, row in zip(slots, rows.split(lengths), strict=True):
                    layer_cache[own, :, : len(row)] = row.transpose(0, 1)
        for own, length in zip(slots, lengths, strict=True):
            for slot in own:
                self.lengths[slot] = length
        return self.model.head(hidden).float()

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Appends one token to each of slots 0 .. N - 1; logits (N, V) float32 of what follows."""
        lengths = torch.tensor(self.lengths[: len(tokens)], device=self.model.device)
        attend = _StepAttention(self, lengths)
        ids = torch.tensor(tokens, device=self.model.device)
        hidden = self.model.run(ids, self._rope(lengths + self.prefix.length), attend, None)
        for slot in range(len(tokens)):
            self.lengths[slot] += 1
        return self.model.head(hidden).float()

    @torch.inference_mode()
    def move(self, source: int, target: int) -> None:
        """Copies slot `source` over slot `target`."""
        length = self.lengths[source]
        for cache in (*self.keys, *self.values):
            cache[target, :, :length] = cache[source, :, :length]
        self.lengths[target] = length


class _Recorder:
    """An Attend that keeps each layer's keys and values (T, G, C) on the way through."""

    def __init__(self, inner: PackedAttention) -> None:
        self.inner = inner
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        self.keys.append(k)
        self.values.append(v)
        return self.inner(layer, q, k, v)


class _StepAttention:
    """An Attend for one new token per slot: writes it into the caches, then looks at the prefix and the slot's row."""

    def __init__(self, session: DecoderSession, lengths_N: torch.Tensor) -> None:
        self.session, self.lengths_N = session, lengths_N
        self.slots = torch.arange(len(lengths_N), device=lengths_N.device)
        self.sight = int(lengths_N.max()) + 1
        self.masks: dict[int | None, torch.Tensor] = {}

    def _mask(self, window: int | None) -> torch.Tensor:
        """Additive (N, 1, 1, P + S): -inf where a row has no token or the window has moved on."""
        if window not in self.masks:
            num_prefix = self.session.prefix.length
            own = torch.arange(self.sight, device=self.slots.device)
            positions = torch.arange(num_prefix + self.sight, device=self.slots.device)
            last = self.lengths_N[:, None]
            seen = torch.cat([own.new_ones(len(last), num_prefix, dtype=torch.bool), own <= last], dim=1)
            if window is not None:
                seen &= positions > last + num_prefix - window
            bias = torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, float("-inf"))
            self.masks[window] = bias[:, None, None]
        return self.masks[window]

    def __call__(self, layer: int, q_NHC: torch.Tensor, k_NGC: torch.Tensor, v_NGC: torch.Tensor) -> torch.Tensor:
        session, spec = self.session, self.session.spec
        keys, values = session.keys[layer], session.values[layer]
        keys[self.slots, :, self.lengths_N] = k_NGC
        values[self.slots, :, self.lengths_N] = v_NGC
        num_rows, num_groups = len(q_NHC), spec.num_kv_heads
        q = (q_NHC * spec.attention_scale).unflatten(1, (num_groups, -1))
        scores = torch.matmul(q, keys[:num_rows, :, : self.sight].transpose(-1, -2))
        num_prefix = session.prefix.length
        if num_prefix:
            shared = torch.matmul(q.transpose(0, 1).flatten(1, 2), session.prefix.keys[layer].transpose(-1, -2))
            scores = torch.cat([shared.unflatten(1, (num_rows, -1)).transpose(0, 1), scores], dim=-1)
        if spec.attention_soft_cap is not None:
            scores = torch.tanh(scores / spec.attention_soft_cap) * spec.attention_soft_cap
        weights = torch.softmax(scores.float() + self._mask(spec.windows[layer]), dim=-1).to(q.dtype)
        out = torch.matmul(weights[..., num_prefix:], values[:num_rows, :, : self.sight])
        if num_prefix:
            shared = weights[..., :num_prefix].transpose(0, 1).flatten(1, 2)
            shared = torch.matmul(shared, session.prefix.values[layer])
            out = out + shared.unflatten(1, (num_rows, -1)).transpose(0, 1)
        return out.reshape(num_rows, -1)

"""The decoder of the Llama line: one readable file that Llama, Mistral, Qwen2, Gemma 2 and Phi-3 run through.

Why our own: packing, pruning to trained positions and shared prefixes are plain code here instead of patches
elsewhere. Modules and parameters carry Hugging Face's names; projections are plain nn.Linear that adapters may replace,
so they are always called, never read. Numbers equal transformers' modeling_*.py (parity-tested: logits and gradients).

Shape legend: T packed tokens, K kept tokens (T when nothing is pruned), D hidden, F ffn, H heads, G key/value heads,
C head_dim, V vocabulary, R rotary dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from luthier.kernels.gated import silu_gated
from luthier.kernels.norm import rms_norm
from luthier.kernels.projection import Linear, project
from luthier.kernels.rotation import can_split_rotated, split_rotated
from luthier.models.attention import Attend, PackedAttention, PackPlan, plan_pack
from luthier.models.family import unshared
from luthier.models.packed import as_ids
from luthier.models.rope import RopeTable, rotate
from luthier.models.row_cache import RowCache
from luthier.models.session import DecoderSession
from luthier.models.shifted import ShiftedAttention
from luthier.models.soft_prompt import SoftPrompt, hidden_behind
from luthier.models.spec import DecoderSpec
from luthier.types import Batch

Rope = tuple[torch.Tensor, torch.Tensor]


class RMSNorm(nn.Module):
    """Root-mean-square norm; Gemma stores its scale as an offset from one."""

    def __init__(self, size: int, eps: float, offset: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps
        self.offset = offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., size) -> same shape."""
        if self.offset:  # Gemma multiplies in float32, before it rounds to the model's dtype
            return F.rms_norm(x.float(), self.weight.shape, 1.0 + self.weight.float(), self.eps).to(x.dtype)
        return rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Projections and rotation; who sees whom is the business of the Attend that is handed in."""

    def __init__(self, spec: DecoderSpec, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim, self.fused = layer, spec.head_dim, spec.fused_projections
        q_size, kv_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        self.sizes = (q_size, kv_size, kv_size)
        if self.fused:
            self.qkv_proj = Linear(spec.hidden_size, sum(self.sizes), bias=spec.qkv_bias)
        else:
            self.q_proj = Linear(spec.hidden_size, q_size, bias=spec.qkv_bias)
            self.k_proj = Linear(spec.hidden_size, kv_size, bias=spec.qkv_bias)
            self.v_proj = Linear(spec.hidden_size, kv_size, bias=spec.qkv_bias)
        self.o_proj = Linear(q_size, spec.hidden_size, bias=spec.o_bias)

    def inputs(self) -> list[nn.Module]:
        """The layers that read the block's input, in the order of their outputs."""
        return [self.qkv_proj] if self.fused else [self.q_proj, self.k_proj, self.v_proj]

    def forward(self, x_TD: torch.Tensor, rope: Rope, attend: Attend, keep_K: torch.Tensor | None) -> torch.Tensor:
        """(K, D): keys and values of all tokens, queries and output only of the kept ones."""
        if keep_K is None or self.fused:
            qkv = project(x_TD, self.inputs())
            if keep_K is None and can_split_rotated(qkv, rope[0]):
                q, k, v = split_rotated(qkv, *rope, self.sizes, self.head_dim)
                return self.o_proj(attend(self.layer, *(x.unflatten(-1, (-1, self.head_dim)) for x in (q, k, v))))
            q, k, v = qkv.split(self.sizes, dim=-1)
            q = q if keep_K is None else q[keep_K]
        else:
            q = self.q_proj(x_TD[keep_K])
            k, v = project(x_TD, [self.k_proj, self.v_proj]).split(self.sizes[1:], dim=-1)
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in (q, k, v))
        cos, sin = rope
        q_cos, q_sin = rope if keep_K is None else (cos[keep_K], sin[keep_K])
        return self.o_proj(attend(self.layer, rotate(q, q_cos, q_sin), rotate(k, cos, sin), v))


def _gelu_gated(both_N2F: torch.Tensor, approximate: str) -> torch.Tensor:
    gate, up = both_N2F.chunk(2, dim=-1)
    return F.gelu(gate, approximate=approximate) * up


_GATED = {
    "silu": silu_gated,
    "gelu": lambda both_N2F: _gelu_gated(both_N2F, "none"),
    "gelu_tanh": lambda both_N2F: _gelu_gated(both_N2F, "tanh"),
}


class MLP(nn.Module):
    """Gated feed-forward: down(act(gate(x)) * up(x))."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.gated = _GATED[spec.activation]
        self.fused = spec.fused_projections
        if self.fused:
            self.gate_up_proj = Linear(spec.hidden_size, 2 * spec.ffn_size, bias=spec.mlp_bias)
        else:
            self.gate_proj = Linear(spec.hidden_size, spec.ffn_size, bias=spec.mlp_bias)
            self.up_proj = Linear(spec.hidden_size, spec.ffn_size, bias=spec.mlp_bias)
        self.down_proj = Linear(spec.ffn_size, spec.hidden_size, bias=spec.mlp_bias)

    def inputs(self) -> list[nn.Module]:
        """The layers that read the block's input: gate first."""
        return [self.gate_up_proj] if self.fused else [self.gate_proj, self.up_proj]

    def forward(self, x_KD: torch.Tensor) -> torch.Tensor:
        """(K, D) -> (K, D)."""
        return self.down_proj(self.gated(project(x_KD, self.inputs())))


class Layer(nn.Module):
    """Norm, attention, norm, MLP, with residuals; Gemma 2 norms what comes out of both blocks as well."""

    def __init__(self, spec: DecoderSpec, layer: int) -> None:
        super().__init__()

        def norm() -> RMSNorm:
            return RMSNorm(spec.hidden_size, spec.norm_eps, spec.norm_offset)

        self.self_attn = Attention(spec, layer)
        self.mlp = MLP(spec)
        self.extra_norms = spec.extra_norms
        self.input_layernorm = norm()
        self.post_attention_layernorm = norm()
        if self.extra_norms:
            self.pre_feedforward_layernorm = norm()
            self.post_feedforward_layernorm = norm()

    def forward(self, x_TD: torch.Tensor, rope: Rope, attend: Attend, keep_K: torch.Tensor | None) -> torch.Tensor:
        """(T, D) -> (K, D). With keep_K everything but keys and values is computed at the kept rows only (exact)."""
        out = self.self_attn(self.input_layernorm(x_TD), rope, attend, keep_K)
        x = x_TD if keep_K is None else x_TD[keep_K]
        if self.extra_norms:
            x = x + self.post_attention_layernorm(out)
            return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        x = x + out
        return x + self.mlp(self.post_attention_layernorm(x))


class Stack(nn.Module):
    """Embedding, layers, final norm (what transformers calls `model`)."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        # A weight that is handed in is not drawn: on the meta device, drawing loads torch's whole compiler (1.7 s).
        weight_VD = torch.empty(spec.vocab_size, spec.hidden_size)
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size, _weight=weight_VD)
        self.layers = nn.ModuleList(Layer(spec, i) for i in range(spec.num_layers))
        self.norm = RMSNorm(spec.hidden_size, spec.norm_eps, spec.norm_offset)


class Decoder(nn.Module):
    """A causal language model over packed documents. Implements luthier.models.packed.PackedModel."""

    row_cache: RowCache | None = None
    """Where rows are kept whose lower layers are frozen; set by the run that knows that it pays."""
    shift_group: int | None = None
    """Tokens of a group of shifted sparse attention, which holds in training alone; None = whole attention."""

    def __init__(self, spec: DecoderSpec, config: dict[str, Any], note: str = "") -> None:
        super().__init__()
        self.spec, self.config, self.note = spec, config, note
        self.model = Stack(spec)
        self.lm_head = Linear(spec.hidden_size, spec.vocab_size, bias=False)
        self.rope = RopeTable(spec.rope)
        self.soft_prompt: SoftPrompt | None = None
        self.tie()

    @property
    def prompt(self) -> SoftPrompt | None:
        """The trained virtual tokens before every document, while they are on."""
        return self.soft_prompt if self.soft_prompt is not None and self.soft_prompt.enabled else None

    @property
    def shares_prefixes(self) -> bool:
        """Not behind virtual tokens, which are a shared prefix themselves, nor in groups that would cut it."""
        return self.soft_prompt is None and self.shift_group is None

    def tie(self) -> None:
        """Makes the head share the embedding's parameter where the spec says so."""
        if self.spec.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def projection_groups(self) -> list[list[nn.Module]]:
        """The linear layers of every block, those that read the same input together; the head is not among them."""
        groups: list[list[nn.Module]] = []
        for layer in self.model.layers:
            assert isinstance(layer, Layer)
            attention, mlp = layer.self_attn, layer.mlp
            groups += [attention.inputs(), [attention.o_proj], mlp.inputs(), [mlp.down_proj]]
        return groups

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights and activations."""
        return self.model.embed_tokens.weight.dtype

    def hidden(self, batch: Batch) -> torch.Tensor:
        """(K, D) after the final norm at batch.keep_K, in its order."""
        if self.row_cache is not None:
            return self.row_cache.hidden(batch)
        if self.shift_group is not None and self.training:
            batch = unshared(batch)
        if self.prompt is not None:
            return hidden_behind(self, self.prompt, batch)
        ids_T, positions_T = as_ids(batch.ids_T, self.device), as_ids(batch.positions_T, self.device)
        plan = plan_pack(torch.as_tensor(batch.cu_seqlens), as_ids(batch.keep_K, self.device), batch.parents_D)
        if any(len({self.spec.rope.length_class(n) for n in (f.shortest, f.longest)}) > 1 for f in plan.families):
            return self.hidden(unshared(batch))  # longrope: these rows rotate one and the same prefix differently
        if plan.num_tokens != len(ids_T):
            raise ValueError(f"cu_seqlens ends at {plan.num_tokens}, but there are {len(ids_T)} tokens")
        return self.run(ids_T, self.packed_rope(positions_T, plan), self.attend(plan), plan.keep_K)

    def attend(self, plan: PackPlan) -> Attend:
        """Attention within the documents of one pack."""
        spec = self.spec
        whole = PackedAttention(plan, spec.windows, spec.attention_scale, spec.attention_soft_cap)
        if self.shift_group is None or not self.training:
            return whole
        return ShiftedAttention.of(whole, self.shift_group)

    def run(self, ids_T: torch.Tensor, rope: Rope, attend: Attend, keep_K: torch.Tensor | None) -> torch.Tensor:
        """The whole stack under any Attend; only the last layer is pruned to keep_K."""
        x = self.through(self.embed(ids_T), range(self.spec.num_layers), rope, attend, keep_K)
        return self.model.norm(x)

    def embed(self, ids_T: torch.Tensor) -> torch.Tensor:
        """(T, D): what the first layer reads. Ids beyond the vocabulary are virtual tokens."""
        if self.prompt is None or self.prompt.per_layer:
            x = self.model.embed_tokens(ids_T)
        else:
            last, is_virtual = self.spec.vocab_size - 1, ids_T >= self.spec.vocab_size
            x = self.model.embed_tokens(ids_T.clamp(max=last))
            rows = self.prompt.rows().to(x.dtype)[ids_T[is_virtual] - last - 1]
            x = x.index_put((is_virtual.nonzero()[:, 0],), rows)
        if self.spec.embed_scale != 1.0:  # rounded to the dtype first, as Gemma was trained
            x = x * torch.tensor(self.spec.embed_scale, dtype=x.dtype)
        return x

    def through(
        self, x_TD: torch.Tensor, layers: range, rope: Rope, attend: Attend, keep_K: torch.Tensor | None
    ) -> torch.Tensor:
        """Some of the layers, in order; the last one of all is pruned to keep_K."""
        x, last = x_TD, self.spec.num_layers - 1
        for i in layers:
            x = self.model.layers[i](x, rope, attend, keep_K if i == last else None)
        return x

    def packed_rope(self, positions_T: torch.Tensor, plan: PackPlan) -> Rope:
        """cos and sin per token; with longrope every row goes by its own length, not by its neighbours'."""
        classes = [self.spec.rope.length_class(length) for length in plan.reach]
        longest = max(plan.reach)
        cos, sin = self.rope.rows(positions_T, longest, self.dtype, classes[0])
        if len(set(classes)) == 1:
            return cos, sin
        others = self.rope.rows(positions_T, longest, self.dtype, 1 - classes[0])
        differs = torch.tensor([c != classes[0] for c in classes], device=self.device)
        differs_T = differs.repeat_interleave(torch.tensor(plan.lengths, device=self.device))[:, None, None]
        return torch.where(differs_T, others[0], cos), torch.where(differs_T, others[1], sin)

    def head(self, hidden_KD: torch.Tensor) -> torch.Tensor:
        """Logits (K, V), soft cap applied."""
        logits_KV = self.lm_head(hidden_KD)
        cap = self.spec.final_soft_cap
        return logits_KV if cap is None else torch.tanh(logits_KV / cap) * cap

    def session(self, *, num_slots: int, capacity: int, prefix: Sequence[int], length_class: int) -> DecoderSession:
        """Empty caches for num_slots rows of at most `capacity` tokens beyond the prefix, which is computed here."""
        return DecoderSession(self, num_slots=num_slots, capacity=capacity, prefix=prefix, length_class=length_class)

    def length_class(self, num_tokens: int) -> int:
        """1 for a longrope document beyond the original context, else 0."""
        return self.spec.rope.length_class(num_tokens + (0 if self.prompt is None else self.prompt.num_tokens))

    def linear_modules(self) -> dict[str, nn.Linear]:
        """Every nn.Linear by module name, lm_head included."""
        return {name: module for name, module in self.named_modules() if isinstance(module, nn.Linear)}

    @property
    def num_parameters(self) -> int:
        """Distinct parameters; a tied head counts once."""
        return sum(p.numel() for p in self.parameters())

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of cache per token and row, in the model's dtype."""
        spec = self.spec
        return spec.num_layers * spec.num_kv_heads * spec.head_dim * 2 * self.dtype.itemsize

"""Seconds of a step: the operations of every product over the machine's measured rate, plus what is not a product.

Counts: a frozen weight costs 2 operations a token forward and 2 backward (4N), a trained one 2 more (6N); the head and
the last layer run at trained tokens only; the updates' own products and attention are counted as they are. How
much slower than the rate each kind is comes from fitted.yaml: five figures for all runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from luthier.bases.shapes import Shapes
from luthier.config.adapter import AdapterSpec
from luthier.errors import ConfigError
from luthier.plan.activations import ACTIVATION_BYTES, FLOAT32, MicroBatch, as_attended
from luthier.plan.fitted import FITTED
from luthier.plan.linears import LinearShape, layer_linears
from luthier.plan.trainable import count_trainable, trainable
from luthier.types import MachineProfile

BACKWARD_ATTENTION = 2.5  # FlashAttention-2 (arXiv 2307.08691): the backward pass has 2.5 times the products
# Numbers of a layer that plain operations (norms, rotation, gating, residuals) read or write per token, both passes.
_HIDDEN_PASSES, _FFN_PASSES, _HEAD_PASSES = 24, 16, 12
_LOGIT_PASSES = 8
_DROPOUT_PASSES = 7  # of an adapter's input: the mask written; input, mask and product; the same three on the way back
# Writing out one 4-bit weight takes as long as moving this many bytes (1.1e9 weights a second and core, Zen 5).
_NF4_BYTES = 18


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of one micro-batch, forward and backward, and the bytes that plain operations move."""

    base: float
    head: float
    adapter: float
    attention: float
    plain_bytes: float

    @property
    def total(self) -> float:
        """All products."""
        return self.base + self.head + self.adapter + self.attention


def count_operations(
    shapes: Shapes, adapter: AdapterSpec, dtype: str, micro: MicroBatch, *, backward: bool = True
) -> Operations:
    """Operations of one micro-batch; backward=False: of an evaluation."""
    inside, found = layer_linears(shapes), trainable(shapes, adapter)
    first, micro = found.lowest, as_attended(micro, adapter) if backward else micro
    width, q_size = ACTIVATION_BYTES[dtype], shapes.num_heads * shapes.head_dim
    moved = width if width == FLOAT32 else width + FLOAT32  # half precision is computed on a copy in float32
    base = own = pairs_seen = plain = 0.0
    for i in range(shapes.num_layers):
        is_last = i == shapes.num_layers - 1
        kept = micro.num_trained if is_last else micro.num_tokens
        passes = 1 + (backward and i >= first)
        for path, linear in inside.items():
            everywhere = linear.leaf in ("k_proj", "v_proj", "qkv_proj")
            rows = micro.num_tokens if everywhere else kept
            base += 2 * linear.size * rows * (passes + (backward and found.weights[i]))
            rank = found.ranks[i].get(path, 0)
            plain += _rearranged(linear, dtype, rows, passes, rank > 0)
            if rank > 0 and adapter.lora_dropout > 0 and backward:
                plain += _DROPOUT_PASSES * FLOAT32 * linear.d_in * rows
            sides = linear.d_out + (linear.d_out if adapter.facts.kind == "bottleneck" else linear.d_in)
            own += (6 if backward else 2) * rank * sides * rows
        pairs_seen += (1 + BACKWARD_ATTENTION * (passes - 1)) * kept * micro.sight / 2
        plain += (passes / 2) * kept * moved * (
            _HIDDEN_PASSES * shapes.hidden_size + _FFN_PASSES * shapes.ffn_size + _HEAD_PASSES * q_size
        )  # fmt: skip
    capped = 4 if shapes.model_type == "gemma2" else 1
    if capped > 1:  # scores are written out
        plain += moved * 12 * shapes.num_heads * pairs_seen
    goes_back = first < shapes.num_layers or found.last_norm
    head_passes = 1 + backward * (goes_back + found.head)
    head = 2 * head_passes * shapes.vocab_size * shapes.hidden_size * micro.num_trained
    plain += FLOAT32 * _LOGIT_PASSES * shapes.vocab_size * micro.num_trained
    return Operations(base, head, own, capped * 4 * q_size * pairs_seen, plain)


def _rearranged(linear: LinearShape, dtype: str, rows: int, passes: int, has_adapter: bool) -> float:
    """Bytes moved around one frozen product: int8 rounds what goes in and scales what comes out, nf4 writes the weight
    out for every pass, and bfloat16 lays the adapter beside the weight for the forward product."""
    if dtype == "nf4":
        return _NF4_BYTES * linear.size * passes
    if dtype == "int8":
        forward, backward = 5 * linear.d_in + 8 * linear.d_out, 5 * linear.d_out + 8 * linear.d_in
        return rows * (forward + (passes - 1) * backward)
    return 4.0 * linear.size if dtype == "bfloat16" and has_adapter else 0.0


def rate_of(machine: MachineProfile, dtype: str) -> float:
    """Operations a second at `dtype`. Raises ConfigError when the machine does not run it."""
    if dtype not in machine.rates_gflops:
        raise ConfigError(
            f"{machine.name} has no {dtype} products", hint=f"model.dtype: {' or '.join(machine.rates_gflops)}"
        )
    return 1e9 * machine.rates_gflops[dtype]


def micro_batch_s(
    shapes: Shapes,
    adapter: AdapterSpec,
    dtype: str,
    micro: MicroBatch,
    machine: MachineProfile,
    *,
    backward: bool = True,
) -> float:
    """Seconds of one micro-batch. Raises ConfigError when the machine does not run `dtype`."""
    share, rate = FITTED[machine.device], rate_of(machine, "float32" if dtype == "nf4" else dtype)
    # Adapters, attention and the head of an int8 base run in the type of the activations.
    float_rate = rate_of(machine, "float32") if dtype == "int8" else rate
    count = count_operations(shapes, adapter, dtype, micro, backward=backward)
    products = share.base * (count.base / rate + count.head / float_rate)
    products += (share.adapter * count.adapter + share.attention * count.attention) / float_rate
    plain = share.traffic * count.plain_bytes / (1e9 * machine.bandwidth_gb_s)
    return products + plain + share.layer_s * shapes.num_layers * (1.0 if backward else 0.4)


def update_s(shapes: Shapes, adapter: AdapterSpec, machine: MachineProfile) -> float:
    """Seconds of clipping and one AdamW update: about ten passes over the trained numbers."""
    return 10 * FLOAT32 * count_trainable(shapes, adapter) / (1e9 * machine.bandwidth_gb_s)

"""Bytes that the backward pass keeps: what one micro-batch leaves behind in every layer of our decoder.

Written down from the decoder and the LoRA layer term by term; tests/plan compares the sum with what
torch.autograd.graph.saved_tensors_hooks sees on every architecture.
Shape legend: T tokens of the micro-batch, K trained tokens (the last layer is computed at those only), S keys in sight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from luthier.bases.shapes import Shapes
from luthier.config.adapter import AdapterSpec
from luthier.plan.linears import LinearShape, adapted_layers, layer_linears

FLOAT32 = 4
ACTIVATION_BYTES = {"float32": 4, "bfloat16": 2, "int8": 4}
"""Bytes of one number of the activations, by model.dtype (with int8 only the frozen weights are 8 bits wide)."""

_STAGES = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "qkv_proj": 0, "o_proj": 1}
_STAGES |= {"gate_proj": 2, "up_proj": 2, "gate_up_proj": 2, "down_proj": 3}


@dataclass(frozen=True)
class MicroBatch:
    """The micro-batch that decides the peak. num_tokens T; num_trained K; sight: mean keys that a token may look at,
    the sum of squared document lengths over T."""

    num_tokens: int
    num_trained: int
    sight: float


def saved_bytes(shapes: Shapes, adapter: AdapterSpec, dtype: str, micro: MicroBatch, device: str = "cpu") -> int:
    """Bytes kept between forward and backward by all layers and the final norm, without the head and the loss."""
    width, layers = ACTIVATION_BYTES[dtype], adapted_layers(shapes, adapter)
    first = next(i for i, paths in enumerate(layers) if paths)
    total = 0.0
    for i in range(first, shapes.num_layers):
        kept = micro.num_trained if i == shapes.num_layers - 1 else micro.num_tokens
        total += _layer(shapes, adapter, layers[i], width, micro, kept, device, is_first=i == first)
    rotary = 2 * (shapes.head_dim // 2) * width * (micro.num_tokens + micro.num_trained)
    return int(total + rotary + micro.num_trained * (FLOAT32 * shapes.hidden_size + FLOAT32))


def _layer(
    shapes: Shapes,
    adapter: AdapterSpec,
    adapted: frozenset[str],
    width: int,
    micro: MicroBatch,
    kept: int,
    device: str,
    *,
    is_first: bool,
) -> float:
    """One layer whose output is computed at `kept` of the T tokens."""
    hidden, ffn, tokens = shapes.hidden_size, shapes.ffn_size, micro.num_tokens
    norm = FLOAT32 * hidden + FLOAT32  # its input in float32, and one scale a token
    # Nothing is kept before the first adapter: its gradient goes nowhere.
    begins = min(_STAGES[path.rpartition(".")[2]] for path in adapted) if is_first else -1
    total = norm * tokens if begins < 0 else 0.0
    if begins <= 0:
        shared = any(path.endswith("o_proj") for path in adapted)  # its adapter keeps attention's output as its input
        total += _attention(shapes, width, micro, kept, device, output_is_kept=shared)
    extra = shapes.model_type == "gemma2"
    total += norm * kept * ((2 if extra else 1) * (begins <= 1) + extra)
    # gate|up; the compiled loop (float32, silu) works act(gate) out again instead of keeping it
    total += (2 if width == FLOAT32 and not extra else 3) * ffn * kept * width * (begins <= 2)
    for group in _groups(shapes, split_q=kept != tokens):
        chosen = [linear for path, linear in group.items() if path in adapted]
        everywhere = any(linear.leaf in ("k_proj", "qkv_proj") for linear in group.values())
        total += _update(adapter, chosen, width, tokens if everywhere else kept)
    return total


def _groups(shapes: Shapes, *, split_q: bool) -> list[dict[str, LinearShape]]:
    """The layers that are one product; q stands alone where it is computed at fewer tokens than k and v."""
    inside = layer_linears(shapes)
    parts = [("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")]
    if split_q:
        parts = [("q_proj",), ("k_proj", "v_proj"), ("gate_proj", "up_proj")]
    groups = [{path: one for path, one in inside.items() if one.leaf in part} for part in parts]
    joined = {path for group in groups for path in group}
    return [group for group in groups if group] + [{path: one} for path, one in inside.items() if path not in joined]


def _update(adapter: AdapterSpec, chosen: Sequence[LinearShape], width: int, num_rows: int) -> float:
    """What the low-rank updates on one product keep: x, x A', the A's side by side, B in half precision, the masks."""
    if not chosen:
        return 0.0
    d_in, ranks = chosen[0].d_in, adapter.lora_r * len(chosen)
    total = float((d_in + ranks) * num_rows * width)
    if len(chosen) > 1 or width < FLOAT32:
        total += ranks * d_in * width
    if width < FLOAT32:
        total += adapter.lora_r * sum(one.d_out for one in chosen) * width
    return total + (d_in * num_rows * len(chosen) if adapter.lora_dropout else 0)


def _attention(shapes: Shapes, width: int, micro: MicroBatch, kept: int, device: str, *, output_is_kept: bool) -> float:
    """Scores are computed in float32 on a CPU whatever the type of the rest. output_is_kept: by what comes next."""
    heads, q_size = shapes.num_heads, shapes.num_heads * shapes.head_dim
    kv_size, tokens = shapes.num_kv_heads * shapes.head_dim, micro.num_tokens
    raised = device == "cpu" and width < FLOAT32
    wide = FLOAT32 if raised else width
    if shapes.model_type == "gemma2":  # capped scores are written out: q, k and v per head, tanh and softmax of S x S
        scores = heads * micro.sight * kept * (2 * wide + (FLOAT32 if wide < FLOAT32 else 0))
        return wide * (q_size * kept + 2 * q_size * tokens) + scores + micro.sight * kept
    narrow = (shapes.sliding_window or micro.sight) < micro.sight
    if device == "cpu" and not narrow:  # the compiled kernel: q, k, v as they are multiplied, log-sum-exp, the output
        output = 0 if output_is_kept and not raised else q_size
        return FLOAT32 * ((q_size + output + heads) * kept + 2 * kv_size * tokens)
    total = wide * (2 * q_size * kept + kv_size * tokens) + FLOAT32 * heads * kept  # q and k rotated, the output
    if raised:
        total += wide * kv_size * tokens  # v
    else:  # v is a view of q|k|v as it came (of k|v where q is computed by itself)
        alone = kept != tokens and shapes.model_type != "phi3"
        total += width * (2 * kv_size + (0 if alone else q_size)) * tokens
    return total + (wide * micro.sight * kept if narrow or kept != tokens else 0)

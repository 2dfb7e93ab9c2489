"""Bytes that the backward pass keeps: what one micro-batch leaves behind in every layer of our decoder.

Written down from the decoder and each method's layer term by term; tests/plan compares the sum with what
torch.autograd.graph.saved_tensors_hooks sees on every architecture.
Shape legend: T tokens of the micro-batch, K trained tokens (the last layer is computed at those only), S keys in sight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from luthier.bases.shapes import Shapes
from luthier.config.adapter import AdapterSpec
from luthier.config.adapter_targets import scales_its_input
from luthier.plan.linears import LinearShape, layer_linears
from luthier.plan.trainable import Trainable, trainable

FLOAT32 = 4
ACTIVATION_BYTES = {"float32": 4, "bfloat16": 2, "int8": 4, "nf4": 4}
"""Bytes of one number of the activations, by model.dtype (with int8 and nf4 only the frozen weights are narrow)."""

_FRESH_A, _FRESH_B = ("adalora", "pissa", "olora", "vera"), ("pissa", "olora", "vera")  # worked out for each product
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
    width, found = ACTIVATION_BYTES[dtype], trainable(shapes, adapter)
    lowest, last = found.lowest, shapes.num_layers - 1
    total = _virtual(shapes, adapter, micro, width)
    micro = as_attended(micro, adapter)
    total += 8.0 * micro.num_tokens if found.embedding else 0.0
    for i in range(max(lowest, 0), shapes.num_layers):
        kept = micro.num_trained if i == last else micro.num_tokens
        total += _layer(shapes, adapter, found, i, width, micro, kept, device)
    if lowest <= last:
        total += 2 * (shapes.head_dim // 2) * width * (micro.num_tokens + micro.num_trained)  # rotary tables
    if lowest <= last or found.last_norm:
        total += _norm(shapes, micro.num_trained, is_trained=found.last_norm)
    return int(total + _shared(shapes, adapter, found))


def as_attended(micro: MicroBatch, adapter: AdapterSpec) -> MicroBatch:
    """The micro-batch with its virtual tokens (one more document, computed once, that every other one sees), or in the
    groups of shifted sparse attention."""
    if adapter.method == "longlora":  # mean keys in sight: within groups of the length, or the half of it
        return MicroBatch(micro.num_tokens, micro.num_trained, min(micro.sight, float(adapter.longlora_group)))
    if adapter.facts.kind != "prompt":
        return micro
    count, tokens = adapter.num_virtual_tokens, micro.num_tokens
    if adapter.method == "prefix_tuning":
        return MicroBatch(tokens, micro.num_trained, micro.sight + count)
    sight = ((micro.sight + count) * tokens + count * count) / (tokens + count)
    return MicroBatch(tokens + count, micro.num_trained, sight)


def _virtual(shapes: Shapes, adapter: AdapterSpec, micro: MicroBatch, width: int) -> float:
    """What virtual tokens keep beside running as tokens: p-tuning's network, and their keys and values, which stand
    before those of the pack (prefix tuning), or are copied for every document where scores are written out."""
    if adapter.facts.kind != "prompt":
        return 0.0
    count, is_gemma = adapter.num_virtual_tokens, shapes.model_type == "gemma2"
    network = 2 * FLOAT32 * count * shapes.hidden_size if adapter.method == "p_tuning" else 0
    if adapter.method == "prefix_tuning":
        size = 0 if is_gemma else 2 * FLOAT32 * shapes.num_kv_heads * shapes.head_dim
        return float(size * count * shapes.num_layers)
    copies = micro.num_tokens / micro.sight if is_gemma else 0.0
    return network + copies * 2 * width * shapes.num_heads * shapes.head_dim * count * shapes.num_layers


def _norm(shapes: Shapes, num_rows: int, *, is_trained: bool) -> int:
    """Its input in float32, and one scale a token; with a trained scale through torch the normed input too."""
    width = FLOAT32 * shapes.hidden_size
    return num_rows * (2 * width + FLOAT32 if is_trained else width + FLOAT32)


def _shared(shapes: Shapes, adapter: AdapterSpec, found: Trainable) -> int:
    """VeRA's two matrices, once for all layers."""
    if adapter.method != "vera":
        return 0
    inside = layer_linears(shapes)
    adapted = [inside[path] for ranks in found.ranks for path in ranks]
    return FLOAT32 * adapter.lora_r * (max(one.d_in for one in adapted) + max(one.d_out for one in adapted))


def _layer(
    shapes: Shapes,
    adapter: AdapterSpec,
    found: Trainable,
    i: int,
    width: int,
    micro: MicroBatch,
    kept: int,
    device: str,
) -> float:
    """Layer i, whose output is computed at `kept` of the T tokens."""
    ffn, tokens, ranks, weights = shapes.ffn_size, micro.num_tokens, found.ranks[i], found.weights[i]
    norm = _norm(shapes, 1, is_trained=found.norms[i])
    # Nothing is kept before the first trained number: its gradient goes nowhere.
    begins = -1
    if i == found.lowest and not weights and not found.norms[i]:
        begins = min((_STAGES[path.rpartition(".")[2]] for path in ranks), default=0)  # prefix tuning: attention
    elif i == found.lowest:
        begins = 0
    total = float(norm * tokens) if begins < 0 else 0.0
    if begins == 0 and found.norms[i]:  # its input needs no gradient, so only the normed input is kept
        total += FLOAT32 * shapes.hidden_size * tokens
    if begins <= 0:
        # What o_proj's adapter keeps as its input is attention's output.
        shared = weights or (
            adapter.method != "longlora" and _keeps_x(adapter) and any(path.endswith("o_proj") for path in ranks)
        )
        total += _attention(shapes, width, micro, kept, device, output_is_kept=shared)
    extra = shapes.model_type == "gemma2"
    total += norm * kept * ((2 if extra else 1) * (begins <= 1) + extra)
    # gate|up; the compiled loop (float32, silu) works act(gate) out again instead of keeping it
    total += (2 if width == FLOAT32 and not extra else 3) * ffn * kept * width * (begins <= 2)
    for group in _groups(shapes, split_q=kept != tokens):
        everywhere = any(linear.leaf in ("k_proj", "qkv_proj") for linear in group.values())
        rows = tokens if everywhere else kept
        if weights:
            total += next(iter(group.values())).d_in * rows * width
        chosen = [(linear, ranks[path]) for path, linear in group.items() if path in ranks]
        total += _update(adapter, chosen, width, rows)
        if chosen and adapter.method in ("dora", "qdora"):
            laid_out = _v_is_laid_out(width, device, all_kept=kept == tokens)
            copied = extra or laid_out or _by_kernel(shapes, micro, device)
            total += _gained(group, chosen, width, rows, attention_keeps=not copied, is_normed=extra)
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


def _update(adapter: AdapterSpec, chosen: Sequence[tuple[LinearShape, int]], width: int, num_rows: int) -> float:
    """What the low-rank updates on one product keep: x, x A', the A's side by side, B in half precision, the masks."""
    if not chosen:
        return 0.0
    if adapter.method == "ia3":  # what is multiplied, and the vector in half precision
        sides = [one.d_in if scales_its_input(one.leaf) else one.d_out for one, _ in chosen]
        return float(sum(sides) * width * (num_rows + (width < FLOAT32)))
    if adapter.facts.kind == "bottleneck":  # the block's output, and the bottleneck (silu: as it came, too)
        one, rank = chosen[0]
        inside = (2 if adapter.method == "houlsby" else 1) * rank
        copied = 2 * rank * one.d_out if width < FLOAT32 else 0
        return float(((one.d_out + inside) * num_rows + copied) * width)
    d_in, ranks = chosen[0][0].d_in, sum(rank for _, rank in chosen)
    total = float((d_in * _keeps_x(adapter) + ranks) * num_rows * width)
    if len(chosen) > 1 or width < FLOAT32 or adapter.method in _FRESH_A:
        total += ranks * d_in * width
    if width < FLOAT32 or adapter.method in _FRESH_B:
        total += sum(rank * one.d_out for one, rank in chosen) * width
    return total + (d_in * num_rows * len(chosen) if adapter.lora_dropout else 0)


def _keeps_x(adapter: AdapterSpec) -> bool:
    """Whether an update's backward pass needs its input."""
    if adapter.facts.kind != "low-rank":
        return False
    return adapter.method != "lora_fa" or adapter.lora_dropout > 0


def _gained(
    group: dict[str, LinearShape],
    chosen: Sequence[tuple[LinearShape, int]],
    width: int,
    num_rows: int,
    *,
    attention_keeps: bool,
    is_normed: bool,
) -> float:
    """DoRA's output, where nobody else keeps it, and a gain and a norm for each output. attention_keeps: v as it came,
    not a copy of it. is_normed: a norm follows a block, and keeps what goes into it."""
    leaves = {one.leaf for one in group.values()}
    has_bias = any(one.has_bias for one in group.values())  # then what follows keeps the sum with it
    kept = {"up_proj", "gate_up_proj"} | ({"v_proj", "qkv_proj"} if attention_keeps else set())
    kept |= {"o_proj", "down_proj"} if is_normed else set()
    kept_anyway = leaves & kept and width == FLOAT32 and not has_bias
    outputs = sum(one.d_out for one in group.values())
    joined = outputs if len(group) > 1 else 0  # the gains side by side
    own = 2 * sum(one.d_out for one, _ in chosen)
    return (0 if kept_anyway else outputs * num_rows * width) + FLOAT32 * (joined + own)


def _attention(shapes: Shapes, width: int, micro: MicroBatch, kept: int, device: str, *, output_is_kept: bool) -> float:
    """Scores are computed in float32 on a CPU whatever the type of the rest. output_is_kept: by what comes next."""
    heads, q_size = shapes.num_heads, shapes.num_heads * shapes.head_dim
    kv_size, tokens = shapes.num_kv_heads * shapes.head_dim, micro.num_tokens
    raised = device == "cpu" and width < FLOAT32
    wide = FLOAT32 if raised else width
    if shapes.model_type == "gemma2":  # capped scores are written out: q, k and v per head, tanh and softmax of S x S
        scores = heads * micro.sight * kept * (2 * wide + (FLOAT32 if wide < FLOAT32 else 0))
        return wide * (q_size * kept + 2 * q_size * tokens) + scores + micro.sight * kept
    if _by_kernel(shapes, micro, device):  # q, k, v as they are multiplied, log-sum-exp, the output
        output = 0 if output_is_kept and not raised else q_size
        return FLOAT32 * ((q_size + output + heads) * kept + 2 * kv_size * tokens)
    total = wide * (2 * q_size * kept + kv_size * tokens) + FLOAT32 * heads * kept  # q and k rotated, the output
    if raised:
        total += wide * kv_size * tokens  # v
    elif _v_is_laid_out(width, device, all_kept=kept == tokens):
        total += width * kv_size * tokens
    else:  # v is a view of q|k|v as it came (of k|v where q is computed by itself)
        alone = kept != tokens and shapes.model_type != "phi3"
        total += width * (2 * kv_size + (0 if alone else q_size)) * tokens
    return total + (wide * micro.sight * kept if kept != tokens or _is_narrow(shapes, micro) else 0)


def _v_is_laid_out(width: int, device: str, *, all_kept: bool) -> bool:
    """Whether the compiled rotation makes a matrix of v alone."""
    return device == "cpu" and width == FLOAT32 and all_kept


def _is_narrow(shapes: Shapes, micro: MicroBatch) -> bool:
    return (shapes.sliding_window or micro.sight) < micro.sight


def _by_kernel(shapes: Shapes, micro: MicroBatch, device: str) -> bool:
    """Whether the compiled attention runs: on a CPU, with a plain softmax and every row in its own sight."""
    return device == "cpu" and shapes.model_type != "gemma2" and not _is_narrow(shapes, micro)

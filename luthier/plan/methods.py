"""Memory of full fine-tuning and QLoRA as others publish it, for comparison and the worked figures.

Conventions, in decimal GB where a figure is quoted: weights = parameters x bytes a parameter; full fine-tuning in
float32 with Adam holds the weights and Adam's two moments = 12 bytes a parameter (84 GB for "7B" = 7e9), and the
gradients on top = 16. QLoRA (arXiv 2305.14314): 4-bit NormalFloat with double quantisation, bf16 tables, recompute.
"""

from __future__ import annotations

from luthier.bases.shapes import Shapes
from luthier.config.adapter import AdapterSpec
from luthier.plan.linears import layer_linears
from luthier.plan.memory import NF4_DOUBLE_QUANTISED
from luthier.plan.trainable import count_trainable

GB = 1e9
BYTES_PER_WEIGHT = {"float32": 4.0, "bfloat16": 2.0, "nf4": 0.5}
CUDA_CONTEXT_BYTES = 0.6e9


def weights_gb(num_parameters: float, kind: str) -> float:
    """Weights alone in GB: float32, bfloat16 or nf4 (4 bits, scales not counted)."""
    return num_parameters * BYTES_PER_WEIGHT[kind] / GB


def full_adam_gb(num_parameters: float, *, with_gradients: bool = False) -> float:
    """Full fine-tuning in float32: weights and Adam's two moments (12 bytes), with the gradients 16 bytes."""
    return num_parameters * (16 if with_gradients else 12) / GB


def qlora_bytes(shapes: Shapes, adapter: AdapterSpec, num_tokens: int, num_trained: int) -> float:
    """Peak on the card of QLoRA with recompute at `num_tokens` a micro-batch, the loss over chunks of 1,024 tokens.

    16 bytes for each trained number (weight, gradient, two moments), layer inputs in bf16, one layer's activations and
    one dequantised weight while it is recomputed.
    """
    linears = layer_linears(shapes).values()
    frozen = shapes.num_layers * sum(one.size for one in linears)
    tables = shapes.num_parameters - frozen
    state = 16.0 * count_trainable(shapes, adapter)
    inputs = 2.0 * shapes.hidden_size * shapes.num_layers * num_tokens
    widths = 2 * shapes.hidden_size + 2 * shapes.num_heads * shapes.head_dim
    widths += 2 * shapes.num_kv_heads * shapes.head_dim + 4 * shapes.ffn_size
    one_layer = 2.0 * widths * num_tokens + 2.0 * max(one.size for one in linears)
    head = 3 * 4.0 * min(num_trained, 1024) * shapes.vocab_size
    return NF4_DOUBLE_QUANTISED * frozen + 2.0 * tables + state + inputs + one_layer + head + CUDA_CONTEXT_BYTES

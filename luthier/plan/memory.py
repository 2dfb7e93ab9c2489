"""Peak memory of one training run, line by line, before anything loads.

The peak is the larger of two moments: reading the weights (stored and converted copies stand together), and the
largest micro-batch. Activations follow `activations.py` exactly; the constants are those of fitted.yaml.
"""

from __future__ import annotations

from dataclasses import dataclass

from luthier.bases.shapes import Shapes
from luthier.config.adapter import AdapterSpec
from luthier.plan.activations import ACTIVATION_BYTES, FLOAT32, MicroBatch, saved_bytes
from luthier.plan.fitted import FITTED
from luthier.plan.linears import layer_linears
from luthier.plan.trainable import optimizer_size, trainable

MIB = 1 << 20
_OPTIMIZERS = (
    "AdamW: two float32 moments for each trained number",
    "GaLore: AdamW's moments in lora_r directions of each matrix, whole ones for the rest",
)
# 4 bits, 8 bits of scale for every 64 weights, and a float32 scale of scales for every 256 of those.
NF4_DOUBLE_QUANTISED = 0.5 + 1 / 64 + 4 / (64 * 256)
STORED_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}


@dataclass(frozen=True)
class Line:
    """One item of the peak. formula: in words, with its figures."""

    name: str
    num_bytes: int
    formula: str


@dataclass(frozen=True)
class Memory:
    """lines add up to train_bytes; peak_bytes is the larger of it and load_bytes (reading the weights)."""

    lines: tuple[Line, ...]
    train_bytes: int
    load_bytes: int

    @property
    def peak_bytes(self) -> int:
        """What the machine must have."""
        return max(self.train_bytes, self.load_bytes)


def weight_bytes(shapes: Shapes, dtype: str) -> int:
    """Bytes of the frozen base as training multiplies with it.

    int8: one byte a weight and direction, its scales, and tables and norms in float32. nf4: 4 bits and scales.
    """
    if dtype not in ("int8", "nf4"):
        return shapes.num_parameters * ACTIVATION_BYTES[dtype]
    inside = layer_linears(shapes).values()
    linears = shapes.num_layers * sum(one.size for one in inside)
    if dtype == "nf4":
        return int(NF4_DOUBLE_QUANTISED * linears) + FLOAT32 * (shapes.num_parameters - linears)
    scales = shapes.num_layers * sum(one.d_in + one.d_out for one in inside)
    return 2 * linears + FLOAT32 * scales + FLOAT32 * (shapes.num_parameters - linears)


def predict_memory(shapes: Shapes, adapter: AdapterSpec, dtype: str, micro: MicroBatch, device: str = "cpu") -> Memory:
    """Memory of training with luthier's engine. device: cpu (resident memory) or cuda (the card's)."""
    width, found, fitted = ACTIVATION_BYTES[dtype], trainable(shapes, adapter), FITTED[device]
    weights = weight_bytes(shapes, dtype)
    saved = saved_bytes(shapes, adapter, dtype, micro, device)
    copies = fitted.capped_head_copies if shapes.model_type == "gemma2" else fitted.head_copies
    copies += 2 * found.head  # its own gradient needs the logits whole, with theirs
    head = int(copies * FLOAT32 * micro.num_trained * shapes.vocab_size)
    passes = 1.0 if found.lowest < shapes.num_layers else 0.5  # the head alone: nothing is gone back through
    work = int(passes * fitted.work_copies * width * micro.num_tokens * widest_output(shapes) + fitted.slack * saved)
    process = int(MIB * (fitted.process_mib + fitted.lazy_mib))
    kind = {"float32": "4 bytes", "bfloat16": "2 bytes", "int8": "2 bytes (1 a direction)", "nf4": "0.52 bytes"}[dtype]
    own, state = found.count > found.beside, found.count * FLOAT32
    held = f"{shapes.num_parameters:,} parameters x {kind}, {'trained in part' if own else 'frozen'} ({dtype})"
    lines = (
        Line("weights", weights, held),
        Line("adapter", FLOAT32 * found.beside, f"{found.beside:,} trained numbers beside them x 4 bytes (float32)"),
        Line("gradients", state, f"4 bytes for each of {found.count:,} trained numbers; none for what is frozen"),
        Line("optimizer", FLOAT32 * optimizer_size(shapes, adapter), _OPTIMIZERS[adapter.method == "galore"]),
        Line(
            "activations", saved,
            f"kept for the backward pass: {shapes.num_layers} layers x {micro.num_tokens:,} tokens, the last "
            f"layer only at the {micro.num_trained:,} trained ones",
        ),
        Line(
            "head", head,
            f"{copies:g} float32 tables of {micro.num_trained:,} trained tokens x {shapes.vocab_size:,} words",
        ),
        Line("working space", work, "intermediate results of the widest layer, and what the allocator keeps"),
        Line("process", process, "Python, PyTorch and its libraries" if device == "cpu" else "the CUDA context"),
    )  # fmt: skip
    lines = tuple(line for line in lines if line.num_bytes)
    return Memory(lines, sum(line.num_bytes for line in lines), _load_bytes(shapes, dtype, device, weights))


def widest_output(shapes: Shapes) -> int:
    """Width of the widest result inside a layer: gate|up, or q|k|v."""
    inside = layer_linears(shapes).values()
    attention = sum(one.d_out for one in inside if one.leaf in ("q_proj", "k_proj", "v_proj", "qkv_proj"))
    return max(attention, 2 * shapes.ffn_size)


def _load_bytes(shapes: Shapes, dtype: str, device: str, weights: int) -> int:
    """Reading: the stored file is mapped, and its copy in the run's type stands beside it until all of it is read."""
    if device != "cpu":
        return weights + int(MIB * FITTED[device].lazy_mib)
    stored = shapes.num_parameters * STORED_BYTES.get(shapes.dtype, 2)
    copied = shapes.num_parameters * STORED_BYTES["float32" if dtype in ("int8", "nf4") else dtype]
    return int(MIB * FITTED[device].process_mib) + stored + copied

"""Throughput of other tools on GPUs: one efficiency a class of runs, held against what they published.

It is how the plan's GPU rate is checked before luthier has measured runs of its own there: the operation count is the
same as ours, so an error in it would show as rows of one class that no single efficiency fits.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from luthier.bases.shapes import Shapes
from luthier.plan.known import known_shapes
from luthier.plan.linears import layer_linears
from luthier.plan.speed import BACKWARD_ATTENTION

_FILE = Path(__file__).with_name("peers.yaml")


@cache
def published() -> dict[str, Any]:
    """classes and rows of peers.yaml."""
    return yaml.safe_load(_FILE.read_text(encoding="utf-8"))


def operations_per_token(shapes: Shapes, method: str, seq: int, *, recompute: bool = False) -> float:
    """Operations a token with full sequences of `seq`: 4N for lora, 6N for full, 2N more with recompute, and causal
    attention. N: numbers in products, the head with them."""
    linears = sum(one.size for one in layer_linears(shapes).values())
    num = shapes.num_layers * linears + shapes.vocab_size * shapes.hidden_size
    attention = shapes.num_layers * 2 * seq * shapes.num_heads * shapes.head_dim
    products = {"lora": 4, "full": 6}[method] + 2 * recompute
    return products * num + attention * (1 + BACKWARD_ATTENTION + recompute)


def predicted_tokens_per_s(row: dict[str, Any]) -> float:
    """Tokens a second and GPU of one row of peers.yaml, from its class's efficiency."""
    shapes, kind = known_shapes(row["base"]), published()["classes"][row["class"]]
    assert shapes is not None
    count = operations_per_token(shapes, row["method"], row["seq"], recompute=row.get("recompute", False))
    return kind["efficiency"] * kind["peak_tflops"] * 1e12 / count

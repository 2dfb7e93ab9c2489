"""Published GPU throughput: one efficiency a class of runs must explain every row of it within 15%."""

from __future__ import annotations

from collections import Counter

import pytest

from luthier.plan.known import known_shapes
from luthier.plan.peers import operations_per_token, predicted_tokens_per_s, published

ROWS = published()["rows"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['class']}-{row['base']}-{row['tokens_per_s']:.0f}")
def test_within_15_percent(row):
    assert predicted_tokens_per_s(row) == pytest.approx(row["tokens_per_s"], rel=0.15)


def test_few_constants_for_many_rows():
    per_class = Counter(row["class"] for row in ROWS)
    assert set(per_class) == set(published()["classes"])
    assert len(ROWS) >= 12
    assert min(per_class.values()) >= 2  # one constant for one row would predict nothing
    assert len(ROWS) >= 3 * len(per_class)


def test_operations_are_the_known_ones():
    """perf.md section 4: 33.8 and 48.8 GFLOP a token for Llama-3.1-8B at 4096, LoRA and LoRA with full recompute."""
    shapes = known_shapes("llama-3.1-8b")
    assert operations_per_token(shapes, "lora", 4096) / 1e9 == pytest.approx(33.8, rel=0.02)
    assert operations_per_token(shapes, "full", 4096) / 1e9 == pytest.approx(48.8, rel=0.02)
    assert operations_per_token(shapes, "lora", 4096, recompute=True) > operations_per_token(shapes, "lora", 4096)

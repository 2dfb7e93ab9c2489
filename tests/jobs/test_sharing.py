"""When a run shares prefixes: never by surprise, and never in silence."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from luthier.config.project import ProjectSpec
from luthier.data.pack import make_batch, make_shared_batch
from luthier.data.stored import EncodedSet
from luthier.jobs.sharing import choose_batches
from luthier.types import EncodedRow

SHARING, OTHER = SimpleNamespace(shares_prefixes=True), SimpleNamespace(shares_prefixes=False)


def rows(num_prefix: int, count: int = 40) -> EncodedSet:
    """Rows of `num_prefix` equal tokens and 20 of their own, 10 of them trained."""
    rng = np.random.default_rng(0)
    prefix = rng.integers(0, 500, num_prefix).tolist()
    own = [rng.integers(0, 500, 20).tolist() for _ in range(count)]
    mask = (False,) * (num_prefix + 10) + (True,) * 10
    return EncodedSet.of([EncodedRow(str(i), (*prefix, *ids), mask) for i, ids in enumerate(own)])


def spec(share: str = "auto", dropout: float = 0.0) -> ProjectSpec:
    return ProjectSpec.model_validate(
        {
            "data": {"train": ["rows.jsonl"]},
            "adapter": {"lora_dropout": dropout},
            "train": {"share_prefix": share, "micro_batch_tokens": 640},
        }
    )


@pytest.mark.parametrize(
    ("chosen", "model", "num_prefix", "shares", "says"),
    [
        (spec(), SHARING, 60, True, "40 of 40 rows share up to 60 tokens"),
        (spec("never"), SHARING, 60, False, ""),
        (spec(), SHARING, 0, False, ""),
        (spec("always"), SHARING, 0, False, ""),
        (spec(), OTHER, 60, False, "this model computes them for every row"),
        (spec("always"), OTHER, 60, False, "this model computes them for every row"),
        (spec(dropout=0.1), SHARING, 60, False, "lora_dropout is above 0"),
        (spec("always", dropout=0.1), SHARING, 60, True, "40 of 40 rows"),
    ],
)
def test_choice_and_what_is_said(capsys, chosen, model, num_prefix, shares, says):
    made = choose_batches(chosen, model, rows(num_prefix))
    assert made is (make_shared_batch if shares else make_batch)
    printed = " ".join("".join(capsys.readouterr()).split())
    assert says in printed if says else not printed


def test_a_small_saving_is_taken_only_when_asked_for():
    """Two rows of forty share 32 of their 52 tokens: 4% of all."""
    few = list(rows(0))
    for i in range(2):
        few[i] = EncodedRow(str(i), (*range(32), *few[i].ids), (False,) * 32 + few[i].trained)
    encoded = EncodedSet.of(few)
    for share, made in (("auto", make_batch), ("always", make_shared_batch)):
        train = spec(share).train.model_copy(update={"micro_batch_tokens": 4000})
        assert choose_batches(spec().model_copy(update={"train": train}), SHARING, encoded) is made

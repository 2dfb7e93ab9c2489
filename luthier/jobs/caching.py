"""Whether a run keeps what its frozen lower layers compute (models/row_cache.py): where there is a second epoch to use
it in, and memory to hold it."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.config.project import ProjectSpec
from luthier.data.stored import EncodedSet
from luthier.engine.memory import available_bytes
from luthier.jobs import console
from luthier.models.decoder import Decoder
from luthier.models.packed import PackedModel
from luthier.models.row_cache import RowCache, lowest_trained

_SHARE_OF_MEMORY = 0.25  # of what is left once the model is loaded


def cache_rows(spec: ProjectSpec, model: PackedModel, sets: Sequence[EncodedSet]) -> RowCache | None:
    """Gives the model a cache where that pays, and says so; None where it does not."""
    if spec.adapter.cache_frozen == "never" or spec.train.num_epochs < 2 or not isinstance(model, Decoder):
        return None
    first, num_layers = lowest_trained(model), model.spec.num_layers
    if first == 0:
        return None
    # Of the head alone only what it reads: the positions that predict a trained token.
    positions = sum(int(rows.num_tokens if first < num_layers else rows.trained.sum()) for rows in sets)
    needed = positions * model.spec.hidden_size * model.dtype.itemsize
    left = available_bytes(model.device)
    if left is not None and needed > _SHARE_OF_MEMORY * left:
        console.line(
            f"the {first} frozen layers are computed in every epoch: keeping their results would take "
            f"{needed / 2**30:.1f} of the {left / 2**30:.1f} GiB that are left"
        )
        return None
    model.row_cache = RowCache(model, first, needed)
    console.line(
        f"the {first} frozen layers of {num_layers} are computed once for each row; from the second epoch on their "
        f"results are read from memory ({needed / 2**20:.0f} MiB)"
    )
    return model.row_cache

"""Whether a run computes shared prompt prefixes once (data/pack.py), decided before the first step and said."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from luthier.config.project import ProjectSpec
from luthier.data.pack import Sharing, epoch_batches, make_batch, make_shared_batch, measure_sharing
from luthier.data.stored import EncodedSet
from luthier.jobs import console
from luthier.models.packed import PackedModel
from luthier.types import Batch, EncodedRow

_LOOKED_AT = 100  # micro-batches of the first epoch that the saving is estimated from
_WORTH_IT = 0.05  # below this share of the tokens, bookkeeping may cost what is saved


def choose_batches(
    spec: ProjectSpec, model: PackedModel, train_set: EncodedSet
) -> Callable[[Sequence[EncodedRow]], Batch]:
    """make_shared_batch where train.share_prefix, the rows, the adapter and the model allow it, else make_batch."""
    if spec.train.share_prefix == "never":
        return make_batch
    packs = epoch_batches(train_set, spec.train.micro_batch_tokens, spec.train.seed, 0)[:_LOOKED_AT]
    sharing = measure_sharing(train_set, packs)
    always = spec.train.share_prefix == "always"
    if not sharing.rows_sharing or (sharing.share_saved < _WORTH_IT and not always):
        return make_batch
    if not model.shares_prefixes:
        console.warn(f"{_saving(sharing)} could be saved, but this model computes them for every row")
        return make_batch
    if spec.adapter.lora_dropout and not always:
        console.line(
            f"shared prefix: off, because adapter.lora_dropout is above 0 (train.share_prefix: always would save "
            f"{sharing.share_saved:.0%} of the tokens, with one draw of dropout for all rows of a prefix)"
        )
        return make_batch
    console.line(f"{_saving(sharing)} need no computing")
    return make_shared_batch


def _saving(sharing: Sharing) -> str:
    return (
        f"shared prefix: {sharing.rows_sharing} of {sharing.num_rows} rows share up to {sharing.prefix_tokens} tokens "
        f"with rows of their micro-batch: {sharing.share_saved:.0%} of the tokens"
    )

"""Whether a run computes shared prompt prefixes once (data/pack.py): one rule for training and for the plan.

Without torch, because the plan asks too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from luthier.config.adapter import AdapterSpec
from luthier.config.project import ProjectSpec
from luthier.data.pack import LayOut, Sharing, epoch_batches, make_batch, make_shared_batch, measure_sharing
from luthier.jobs import console
from luthier.types import RowSet

_LOOKED_AT = 100  # micro-batches of the first epoch that the saving is estimated from
_WORTH_IT = 0.05  # below this share of the tokens, bookkeeping may cost what is saved


class _Model(Protocol):
    @property
    def shares_prefixes(self) -> bool: ...


@dataclass(frozen=True)
class Layout:
    """How micro-batches are laid out. share_saved: of the rows' tokens, not computed; says: for the user."""

    lay_out: LayOut
    share_saved: float = 0.0
    says: str = ""


def decide(spec: ProjectSpec, rows: RowSet, packs: Sequence[Sequence[int]], *, can_share: bool = True) -> Layout:
    """make_shared_batch where train.share_prefix, the rows, the adapter and the model allow it, else make_batch."""
    plain = Layout(make_batch)
    if spec.train.share_prefix == "never" or not _can_share(spec.adapter):
        return plain
    sharing, always = measure_sharing(rows, packs[:_LOOKED_AT]), spec.train.share_prefix == "always"
    if not sharing.rows_sharing or (sharing.share_saved < _WORTH_IT and not always):
        return plain
    if not can_share:
        return Layout(make_batch, says=f"{_saving(sharing)} could be saved, but this model computes them for every row")
    if spec.adapter.lora_dropout and not always:
        return Layout(
            make_batch,
            says=f"shared prefix: off, because adapter.lora_dropout is above 0 (train.share_prefix: always would save "
            f"{sharing.share_saved:.0%} of the tokens, with one draw of dropout for all rows of a prefix)",
        )
    return Layout(make_shared_batch, sharing.share_saved, f"{_saving(sharing)} need no computing")


def _can_share(adapter: AdapterSpec) -> bool:
    """Virtual tokens are a shared prefix themselves; groups of sparse attention would cut it."""
    return adapter.facts.kind != "prompt" and adapter.method != "longlora"


def choose_batches(spec: ProjectSpec, model: _Model, train_set: RowSet) -> LayOut:
    """The layout of a run of `model`, said on the console before the first step."""
    packs = epoch_batches(train_set, spec.train.micro_batch_tokens, spec.train.seed, 0)
    chosen = decide(spec, train_set, packs, can_share=model.shares_prefixes)
    if chosen.says:
        (console.line if model.shares_prefixes else console.warn)(chosen.says)
    return chosen.lay_out


def _saving(sharing: Sharing) -> str:
    return (
        f"shared prefix: {sharing.rows_sharing} of {sharing.num_rows} rows share up to {sharing.prefix_tokens} tokens "
        f"with rows of their micro-batch: {sharing.share_saved:.0%} of the tokens"
    )

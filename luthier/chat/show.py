"""A training row as (token text, trained) pairs, for `luthier mask`."""

from __future__ import annotations

from luthier.chat.codec import ChatCodec
from luthier.types import Row


def mask_view(codec: ChatCodec, row: Row) -> list[tuple[str, bool]]:
    """The row's tokens in order, as readable text, and whether each carries loss. Rows that split are shown one after
    the other. Bytes that are no whole character show as U+FFFD."""
    view = []
    for encoded in codec.encode(row):
        for token_id, trained in zip(encoded.ids, encoded.trained, strict=True):
            view.append((codec.tokenizer.decode([token_id]), trained))
    return view

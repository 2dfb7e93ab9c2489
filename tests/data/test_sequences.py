"""What a row becomes for an objective."""

import pytest

from luthier.config.loss import LossSpec
from luthier.data.sequences import Mismatched, RowEncoder
from luthier.data.stored import EncodedSet
from luthier.types import EncodedRow, Row


class _Codec:
    """A token a character; after `|` it is trained."""

    def encode(self, row):
        text = row.text or "".join(m["content"] for m in row.messages)
        flags = [False] + [True] * (len(text) - 1)
        if not row.text:
            flags = [c for m in row.messages for c in [m["role"] == "assistant"] * len(m["content"])]
        return [EncodedRow(row.id, tuple(map(ord, text)), tuple(flags))]


@pytest.mark.parametrize(
    ("length", "window", "overlap"), [(50, 10, 3), (50, 10, 9), (10, 10, 3), (11, 10, 1), (12, 8, 4)]
)
def test_every_token_of_a_long_document_but_the_first_carries_loss_exactly_once(length, window, overlap):
    text = "".join(chr(100 + i) for i in range(length))
    encoder = RowEncoder(_Codec(), LossSpec(kind="continued", chunk_overlap=overlap), window)
    chunks = encoder.encode(Row("r", text=text))
    trained = [token for chunk in chunks for token, flag in zip(chunk.ids, chunk.trained, strict=True) if flag]
    assert trained == [ord(c) for c in text[1:]]
    assert all(len(chunk.ids) <= window and not chunk.trained[0] for chunk in chunks)
    for chunk in chunks[1:]:
        assert sum(not flag for flag in chunk.trained) == overlap, "context comes from the chunk before"


def test_earlier_turns_weigh_what_is_asked():
    turns = (("user", "ask"), ("assistant", "one"), ("user", "more"), ("assistant", "two"))
    row = Row("r", tuple({"role": role, "content": text} for role, text in turns))
    (last,) = RowEncoder(_Codec(), LossSpec(earlier_turns=0.0), 99).encode(row)
    assert last.trained == (False,) * 10 + (True,) * 3 and not last.weights
    (weighed,) = RowEncoder(_Codec(), LossSpec(earlier_turns=0.25), 99).encode(row)
    assert sum(weighed.trained) == 6 and set(weighed.weights[3:6]) == {0.25} and set(weighed.weights[10:]) == {1.0}
    assert RowEncoder(_Codec(), LossSpec(), 99).encode(row)[0].trained[3:6] == (True,) * 3


def test_mismatched_rows_have_their_own_prompt_and_the_row_befores_answer():
    rows = [
        EncodedRow(f"r{i}", (10 + i,) * (i + 2) + (90 + i,) * 2, (False,) * (i + 2) + (True,) * 2) for i in range(3)
    ]
    mixed = Mismatched(EncodedSet.of(rows))
    for i in range(3):
        (other,) = mixed[i].companions
        assert other.ids == (10 + i,) * (i + 2) + (90 + (i - 1) % 3,) * 2
        assert mixed[i].num_tokens == mixed.lengths[i] and sum(other.trained) == 2


def test_pairs_and_weights_survive_the_arrays(tmp_path):
    rows = [EncodedRow(f"r{i}", (1, 2, 3 + i), (False, True, True), (1.0, 0.5, 1.0)) for i in range(3)]
    paired = [
        EncodedRow(r.row_id, r.ids, r.trained, r.weights, (EncodedRow(r.row_id, (1, 9), (False, True), (1.0, 1.0)),))
        for r in rows
    ]
    stored = EncodedSet.of(paired)
    assert list(stored) == paired and stored.lengths.tolist() == [5, 5, 5] and len(stored) == 3

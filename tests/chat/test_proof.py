"""Each obligation catches the defect it is named for: a codec with one planted defect fails it."""

import dataclasses
import json

import pytest

from luthier.bases.tokenizer import Tokenizer
from luthier.chat.codec import ChatCodec
from luthier.chat.families.chatml import CHATML, SMOLLM2
from luthier.chat.families.llama3 import LLAMA3
from luthier.chat.proof import prove
from luthier.types import EncodedRow, Row
from tests.chat.build import chat, make_family

ROWS = [
    Row(id="1", messages=chat("What is it?", "It is a four.", system="Be brief."), source="a.jsonl", line=3),
    Row(id="2", messages=chat("a b", "c d e", "f", "g h i")),
]


def mask_where(encoded, condition):
    return dataclasses.replace(encoded, trained=tuple(condition(i) for i in range(len(encoded.ids))))


class Shifted(ChatCodec):
    """Labels one token late, as when a collator shifts what the loss shifts again."""

    def encode(self, row):
        return [mask_where(e, lambda i, e=e: i > 0 and e.trained[i - 1]) for e in super().encode(row)]


class NoStop(ChatCodec):
    """The stop token is left out of the mask."""

    def encode(self, row):
        return [
            mask_where(e, lambda i, e=e: e.trained[i] and e.ids[i] not in self.stop_ids) for e in super().encode(row)
        ]


class PadIsEos(ChatCodec):
    """A collator that masks labels by `== pad`, with pad == eos."""

    def encode(self, row):
        pad = self.tokenizer.pad_id
        return [mask_where(e, lambda i, e=e: e.trained[i] and e.ids[i] != pad) for e in super().encode(row)]


class DoubleBos(ChatCodec):
    """The tokenizer adds BOS to a text that holds it already."""

    def encode(self, row):
        bos = self.tokenizer.bos_id
        return [EncodedRow(e.row_id, (bos, *e.ids), (False, *e.trained)) for e in super().encode(row)]


class BosOnlyInTraining(ChatCodec):
    """BOS in training, none in serving."""

    def prompt_ids(self, messages):
        return super().prompt_ids(messages)[1:]


class UserTrained(ChatCodec):
    """The user's turn is trained instead of the assistant's."""

    def encode(self, row):
        return [mask_where(e, lambda i, e=e: i > 0 and not e.trained[i]) for e in super().encode(row)]


class Truncated(ChatCodec):
    """Rows are cut to a length, in the middle of the answer."""

    def encode(self, row):
        return [EncodedRow(e.row_id, e.ids[:-4], e.trained[:-4]) for e in super().encode(row)]


class Hole(ChatCodec):
    """Only the end of each answer is trained... the first token is, then a gap."""

    def encode(self, row):
        return [
            mask_where(e, lambda i, e=e: e.trained[i] and (not e.trained[i - 1] or e.ids[i] in self.stop_ids))
            for e in super().encode(row)
        ]


class Injected(ChatCodec):
    """Rendered text is tokenised as it is: control tokens in content become real."""

    def encode(self, row):
        out = []
        for e in super().encode(row):
            ids = self.tokenizer.encode(self.renderer.text(row.messages))
            flags = (e.trained + (False,) * len(ids))[: len(ids)]
            out.append(EncodedRow(e.row_id, tuple(ids), flags))
        return out


class PieceWise(ChatCodec):
    """Message texts tokenised one by one with a blank put before: ids that serving would never see."""

    def encode(self, row):
        blank = self.tokenizer.encode(" ")[0]
        return [EncodedRow(e.row_id, (*e.ids, blank), (*e.trained, False)) for e in super().encode(row)]


DEFECTS = [
    (PieceWise, "P1"),
    (Shifted, "P2"),
    (Hole, "P3"),
    (NoStop, "P4"),
    (PadIsEos, "P4"),
    (UserTrained, "P5"),
    (Injected, "P6"),
    (DoubleBos, "P7"),
    (BosOnlyInTraining, "P7"),
    (Truncated, "P8"),
]


@pytest.fixture(scope="module", params=[SMOLLM2, LLAMA3], ids=lambda f: f.name)
def tokenizer(request, tmp_path_factory):
    return Tokenizer.load(make_family(request.param, tmp_path_factory.mktemp("proof")))


@pytest.mark.known_bug("CX")
@pytest.mark.parametrize(("defective", "named"), DEFECTS, ids=lambda v: getattr(v, "__name__", v))
def test_defect_is_caught_by_its_obligation(tokenizer, defective, named):
    proof = prove(defective(tokenizer), ROWS)
    assert not proof.passed
    failed = {o.id: o.detail for o in proof.obligations if not o.passed}
    assert named in failed, failed


def test_healthy_codec_passes_and_the_proof_is_json(tokenizer):
    proof = prove(ChatCodec(tokenizer), ROWS)
    assert proof.passed and proof.num_rows == 2
    assert json.loads(json.dumps(proof.as_json()))["passed"] is True


def test_stop_token_that_no_server_knows_fails_p4(tmp_path):
    folder = make_family(CHATML, tmp_path, stops=("<|endoftext|>",))
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    proof = prove(ChatCodec(Tokenizer.load(folder)), ROWS)
    failed = {o.id: o.detail for o in proof.obligations if not o.passed}
    assert "P4" in failed and "<|im_end|>" in failed["P4"]


def test_rows_are_sampled_and_refused_rows_are_told(tokenizer):
    rows = [Row(id=str(i), messages=chat("q", f"a{i}")) for i in range(500)]
    assert prove(ChatCodec(tokenizer), rows, max_rows=50).num_rows == 50
    broken = Row(id="x", messages=({"role": "user", "content": None},), source="f.jsonl", line=9)
    proof = prove(ChatCodec(tokenizer), [*rows[:3], broken])
    assert proof.passed and "f.jsonl:9" in proof.refused[-1]


def test_a_template_that_nothing_passes_is_not_proved(tmp_path):
    folder = make_family(CHATML, tmp_path, template="{{ raise_exception('never') }}")
    proof = prove(ChatCodec(Tokenizer.load(folder)), ROWS)
    assert not proof.passed and "never" in proof.obligations[0].detail


def test_only_text_rows_still_prove_the_planted_conversation(tokenizer):
    assert prove(ChatCodec(tokenizer), [Row(id="t", text="some text")]).passed

"""The tokenizer's facts, and its literal readings, against tokenizers and transformers."""

import json
import shutil

import pytest
from transformers import AutoTokenizer

from luthier.bases.tokenizer import Tokenizer
from luthier.errors import BaseModelError
from tests.tiny import make_tokenizer

TEXTS = ["", "Hello world", "Grüße 日本語 🙂", "a\n\n  b\t1 23", "<|im_start|>user\nq<|im_end|>\n", "x<|im_end|>y"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(path)
    return path


def test_ids_text_and_offsets_equal_transformers(folder):
    ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ours.encode(text)) == text
        assert ours.decode(ours.encode(text), skip_specials=True) == theirs.decode(
            ours.encode(text), skip_special_tokens=True
        )
        ids, offsets = ours.encode_offsets(text)
        assert ids == ours.encode(text)
        wanted = theirs(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        assert offsets == [tuple(pair) for pair in wanted]
    assert ours.encode_batch(TEXTS) == [ours.encode(text) for text in TEXTS]


def test_facts(folder):
    ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)
    assert ours.stop_ids == {2} and ours.vocab_size == len(theirs) and not ours.adds_bos
    assert ours.special_tokens == {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    assert ours.chat_template == theirs.chat_template
    assert len(ours.digest) == 64 and ours.digest == Tokenizer.load(folder).digest


def test_control_tokens_as_text(folder):
    ours = Tokenizer.load(folder)
    for text in TEXTS:
        ids = ours.encode(text, specials=False)
        assert not set(ids) & set(ours.special_tokens.values())
        assert ours.decode(ids) == text


def test_spans_mix_both_readings_and_keep_offsets(folder):
    ours = Tokenizer.load(folder)
    text = "<|im_start|>a<|im_end|>é b<|im_end|>c<|im_end|>"
    at = text.index("<|im_end|>")
    ids, offsets = ours.encode_spans(text, [(at, at + 10)])
    assert [ids.count(i) for i in (1, 2)] == [1, 2]
    assert ours.decode(ids) == text
    assert [text[a:b] for i, (a, b) in zip(ids, offsets, strict=True) if i in (1, 2)] == ["<|im_start|>"] + [
        "<|im_end|>"
    ] * 2


def test_templates_and_stop_tokens_of_older_folders(folder, tmp_path):
    for name in ("tokenizer.json",):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    config = {"eos_token": {"content": "<|im_end|>", "lstrip": False}, "chat_template": named}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    ours = Tokenizer.load(tmp_path)
    assert ours.chat_template == "D" and ours.stop_ids == {0, 2} and ours.eos_id == 2 and ours.bos_id is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": "1.0"}'])
def test_torn_tokenizer_is_named(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(BaseModelError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("stops", ["2", -1, [2, 99_999], [2.0], [True], 2**40])
def test_a_stop_that_is_no_token_is_refused_where_it_stands(folder, tmp_path, stops):
    shutil.copytree(folder, tmp_path / "base")
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    with pytest.raises(BaseModelError, match=r"generation_config\.json: eos_token_id .* is no token"):
        Tokenizer.load(tmp_path / "base")


def test_a_template_that_is_no_text_is_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(BaseModelError, match=r"chat_template\.jinja: not UTF-8 \(byte 0\)"):
        Tokenizer.load(tmp_path / "base")


def test_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(BaseModelError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)

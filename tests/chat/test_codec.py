"""Bad conversations, history-rewriting templates, SentencePiece-like tokenizers, text rows, the sandbox."""

import json
import time

import pytest
from transformers import AutoTokenizer

from luthier.bases.tokenizer import Tokenizer
from luthier.chat import template as template_module
from luthier.chat.codec import ChatCodec
from luthier.chat.families.chatml import CHATML
from luthier.chat.families.llama2 import LLAMA2
from luthier.chat.families.mistral import MISTRAL
from luthier.chat.families.phi3 import PHI3
from luthier.chat.families.plain import PLAIN
from luthier.chat.families.zephyr import ZEPHYR
from luthier.chat.obligations import runs
from luthier.chat.proof import prove
from luthier.chat.template import ChatTemplate
from luthier.errors import TemplateError
from luthier.types import Row
from tests.chat.build import chat, make_family

# Answers may open with <think>...</think>; it is dropped from every turn but the last (as Qwen3 and DeepSeek do).
REWRITING = """{% for message in messages -%}
{% set text = message.content -%}
{% if message.role == 'assistant' and not loop.last -%}{% set text = text.split('</think>')[-1] -%}{% endif -%}
<|im_start|>{{ message.role }}
{{ text }}<|im_end|>
{% endfor -%}
{% if add_generation_prompt -%}
<|im_start|>assistant
{% endif %}"""


@pytest.fixture(scope="module")
def chatml(tmp_path_factory):
    return ChatCodec(Tokenizer.load(make_family(CHATML, tmp_path_factory.mktemp("chatml"))))


def codec_with(tmp_path, family, **options):
    return ChatCodec(Tokenizer.load(make_family(family, tmp_path, **options)))


BAD = {
    "unknown role": ([{"role": "human", "content": "x"}], "role 'human' is unknown"),
    "no role": ([{"content": "x"}], "role None is unknown"),
    "content none": ([{"role": "user", "content": None}, {"role": "assistant", "content": "a"}], "no content"),
    "content list": ([{"role": "user", "content": [{"type": "text"}]}], "content of type list"),
    "empty answer": ([{"role": "user", "content": "q"}, {"role": "assistant", "content": " \n"}], "empty assistant"),
    "no answer": ([{"role": "user", "content": "q"}], "last message is of role 'user'"),
    "answer first": ([{"role": "assistant", "content": "a"}], "starts with an assistant"),
    "blank answer start": ([{"role": "user", "content": "q"}, {"role": "assistant", "content": "\n\nab"}], "join"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_conversations_are_named_with_file_and_line(chatml, name):
    messages, words = BAD[name]
    with pytest.raises(TemplateError, match=words) as caught:
        chatml.encode(Row(id="r", messages=tuple(messages), source="in.jsonl", line=4))
    assert str(caught.value).startswith("in.jsonl:4: ")
    assert caught.value.hint


def test_empty_conversation(chatml):
    with pytest.raises(TemplateError, match="no messages"):
        chatml.prompt_ids([])


def test_template_that_leaves_out_a_role(tmp_path):
    loop = "{% for message in messages -%}"
    silent = CHATML.template.replace(loop, loop.replace("messages -", "messages if message.role != 'system' -"))
    codec = codec_with(tmp_path, CHATML, template=silent)
    codec.encode(Row(id="r", messages=chat("q", "a")))
    with pytest.raises(TemplateError, match="leaves out the system message"):
        codec.encode(Row(id="r", messages=chat("q", "a", system="s")))


def test_template_that_answers_nothing(tmp_path):
    codec = codec_with(
        tmp_path, CHATML, template="{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    )
    with pytest.raises(TemplateError, match="leaves out the assistant"):
        codec.encode(Row(id="r", messages=chat("q", "a")))


def test_rewritten_history_gives_one_row_for_each_turn(tmp_path):
    codec = codec_with(tmp_path, CHATML, template=REWRITING)
    messages = chat("q1", "<think>x</think>a1", "q2", "<think>y</think>a2")
    encoded = codec.encode(Row(id="r", messages=messages))
    assert [e.row_id for e in encoded] == ["r/0", "r/1"]
    texts = [codec.tokenizer.decode([i for i, t in zip(e.ids, e.trained, strict=True) if t]) for e in encoded]
    assert texts == ["<think>x</think>a1<|im_end|>", "<think>y</think>a2<|im_end|>"]
    assert "think" not in codec.tokenizer.decode(encoded[1].ids[: runs(encoded[1].trained)[0][0]])
    assert len(codec.encode(Row(id="s", messages=messages[:2]))) == 1
    assert len(codec.encode(Row(id="s", messages=chat("q1", "a1", "q2", "a2")))) == 1
    proof = prove(codec, [Row(id="r", messages=messages)])
    assert proof.passed, proof


def test_prompt_that_differs_between_serving_and_training_is_refused(tmp_path):
    thinking = CHATML.template.replace("<|im_start|>assistant\n{% endif", "<|im_start|>assistant\n<think>\n{% endif")
    codec = codec_with(tmp_path, CHATML, template=thinking)
    with pytest.raises(TemplateError, match="not a prefix") as caught:
        codec.encode(Row(id="r", messages=chat("q", "a")))
    assert "serving" in caught.value.hint


def test_template_settings_reach_the_template(tmp_path):
    folder = make_family(CHATML, tmp_path, template="{{ mood }}" + CHATML.template)
    codec = ChatCodec(Tokenizer.load(folder), mood="glad")
    assert codec.tokenizer.decode(codec.prompt_ids(chat("q"))).startswith("glad<|im_start|>")


def test_structure_tokens_of_an_answer_stay_tokens_but_not_a_users(tmp_path):
    """<think> is added, non-special, and in the template: a token in an answer, text in a user's turn."""
    folder = make_family(CHATML, tmp_path, template=CHATML.template + "{# <think> #}")
    raw = Tokenizer.load(folder)
    spec = json.loads((folder / "tokenizer.json").read_text())
    new_id = raw.vocab_size
    spec["added_tokens"].append(spec["added_tokens"][0] | {"id": new_id, "content": "<think>", "special": False})
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    codec = ChatCodec(Tokenizer.load(folder))
    (encoded,) = codec.encode(Row(id="r", messages=chat("<think> now", "<think>ok")))
    assert encoded.ids.count(new_id) == 1
    assert encoded.trained[encoded.ids.index(new_id)]


@pytest.mark.parametrize("style", ["metaspace", "prepend"])
@pytest.mark.parametrize("family", [MISTRAL, LLAMA2, ZEPHYR], ids=lambda f: f.name)
def test_sentencepiece_like_tokenizers(tmp_path, family, style):
    folder = make_family(family, tmp_path, style=style)
    codec, theirs = ChatCodec(Tokenizer.load(folder)), AutoTokenizer.from_pretrained(folder)
    for messages in (chat("What is it", "answer"), chat("is it", "the word", "label", "please one")):
        (encoded,) = codec.encode(Row(id="r", messages=messages))
        assert list(encoded.ids) == list(theirs.apply_chat_template(list(messages), return_dict=False))
        text = codec.renderer.text(messages)
        assert codec.tokenizer.encode_spans(text, [(0, 0)])[0] == codec.tokenizer.encode(text)
        spans = runs(encoded.trained)
        assert [codec.parse(encoded.ids[a:b]) for a, b in spans] == [m["content"] for m in messages[1::2]]
    assert prove(codec, [Row(id="r", messages=chat("What is it", "answer"))]).passed


def test_control_token_that_swallows_the_newline(tmp_path):
    folder = make_family(PHI3, tmp_path, rstrip=("<|end|>", "<|user|>", "<|assistant|>"))
    codec, theirs = ChatCodec(Tokenizer.load(folder)), AutoTokenizer.from_pretrained(folder)
    messages = chat("What?", "That.", "More <|end|> x", "No.")
    clean = chat("What?", "That.", "More", "No.")
    (encoded,) = codec.encode(Row(id="r", messages=clean))
    assert list(encoded.ids) == list(theirs.apply_chat_template(list(clean), return_dict=False))
    assert prove(codec, [Row(id="r", messages=clean), Row(id="s", messages=messages)]).passed


def test_prompt_that_ends_in_white_space_of_two_readings_is_refused(tmp_path):
    """GPT-2's words read a final blank line as one token, and as two when a word follows: serving would differ."""
    codec = codec_with(tmp_path, CHATML, template=CHATML.template.replace("assistant\n", "assistant\n\n"))
    with pytest.raises(TemplateError):
        codec.encode(Row(id="r", messages=chat("q", "answer")))


def test_text_rows(chatml):
    (encoded,) = chatml.encode(Row(id="t", text="plain <|im_end|> text"))
    assert encoded.ids[-1] == chatml.tokenizer.eos_id and encoded.ids.count(chatml.tokenizer.eos_id) == 1
    assert encoded.trained == (False,) + (True,) * (len(encoded.ids) - 1)
    assert chatml.tokenizer.decode(encoded.ids[:-1]) == "plain <|im_end|> text"


def test_base_without_template_or_eos_is_refused(tmp_path):
    folder = make_family(PLAIN, tmp_path)
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(TemplateError, match="neither a chat template nor an EOS"):
        ChatCodec(Tokenizer.load(folder))


def test_forged_guards_are_refused(chatml):
    with pytest.raises(TemplateError):
        chatml.encode(Row(id="r", messages=chat("\U000f5350<|im_end|>\U000f5351", "a")))


HOSTILE = {
    "attributes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "mutation": "{{ messages.append(1) }}",
    "repetition": "{{ 'x' * 10**9 }}",
    "padding": "{{ 'x'.ljust(10**9) }}",
    "centre": "{{ 'x' | center(10**9) }}",
    "range": "{% for i in range(10**9) %}{% endfor %}",
    "silent loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "macro bomb": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "endless recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "output flood": "{% for a in range(99999) %}{{ 'x' * 100000 }}{% endfor %}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_are_stopped(name, monkeypatch):
    monkeypatch.setattr(template_module, "MAX_RENDER_S", 0.5)
    start_s = time.monotonic()
    with pytest.raises(TemplateError):
        ChatTemplate(HOSTILE[name], {}).render([{"role": "user", "content": "q"}], add_generation_prompt=False)
    assert time.monotonic() - start_s < 3


def test_template_that_does_not_parse():
    with pytest.raises(TemplateError, match="line 2"):
        ChatTemplate("\n{% for %}", {})


def test_template_conventions():
    source = """{% for m in messages %}
    {% if loop.index > 1 %}{% break %}{% endif %}
    {% generation %}{{ m | tojson }}{% endgeneration %}
{% endfor %}
{{ strftime_now('%Y') | length }}{{ tools is none }}"""
    text = ChatTemplate(source, {}).render([{"role": "user", "content": "<é>"}] * 2, add_generation_prompt=False)
    assert '{"role": "user", "content": "<é>"}' in text and text.endswith("4True")

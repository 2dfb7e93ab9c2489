"""Conversations with tools, turns that are not trained, and segments: rendered, masked, proved, or refused."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from luthier.bases.tokenizer import Tokenizer
from luthier.chat.codec import ChatCodec
from luthier.chat.families.chatml import CHATML
from luthier.chat.obligations import runs
from luthier.chat.proof import prove
from luthier.errors import TemplateError
from luthier.types import Row
from tests.chat.build import make_family

# Tools in the system turn, calls behind the answer's text, results as user turns: the way of Hermes and Qwen 2.5.
TOOLS_CHATML = """{% if tools %}<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content }}
{% endif %}Tools:
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% elif messages[0].role == 'system' %}<|im_start|>system
{{ messages[0].content }}<|im_end|>
{% endif %}{% for message in messages %}{% if message.role == 'user' %}<|im_start|>user
{{ message.content }}<|im_end|>
{% elif message.role == 'assistant' %}<|im_start|>assistant
{{ message.content }}{% for call in message.tool_calls or [] %}

<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% elif message.role == 'tool' %}<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

SCHEMA = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "the weather of <|im_end|> a place",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
}


def call(place: str, name: str = "weather") -> dict:
    return {"type": "function", "id": "call00001", "function": {"name": name, "arguments": {"place": place}}}


ASKED = {"role": "user", "content": "is it wet in Köln?", "tools": [SCHEMA]}
CONVERSATION = (
    {"role": "system", "content": "be brief"},
    ASKED,
    {"role": "assistant", "content": "", "tool_calls": [call("Köln")]},
    {"role": "tool", "content": '{"rain": true}', "tool_call_id": "call00001"},
    {"role": "assistant", "content": "yes", "tool_calls": [call("Bonn <|im_end|>"), call("Rome")]},
    {"role": "tool", "content": "dry"},
    {"role": "tool", "content": "sunny"},
    {"role": "assistant", "content": "Yes, but not in Rome."},
)


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    folder = make_family(CHATML, tmp_path_factory.mktemp("tools"), template=TOOLS_CHATML)
    return ChatCodec(Tokenizer.load(folder))


def trained_texts(codec, encoded):
    spans = runs(encoded.trained)
    return [codec.tokenizer.decode(encoded.ids[start:end]) for start, end in spans]


def test_calls_are_trained_to_their_stop_token_and_nothing_else_is(codec):
    encoded = codec.encode(Row("r", CONVERSATION))
    assert len(encoded) == 1
    first, second, last = trained_texts(codec, encoded[0])
    assert first.endswith("<|im_end|>") and '{"name": "weather", "arguments": {"place": "Köln"}}' in first
    assert second.startswith("yes") and "Bonn <|im_end|>" in second and '"Rome"' in second
    assert last == "Yes, but not in Rome.<|im_end|>"
    assert not any(word in first + second + last for word in ("rain", "sunny", "properties", "be brief"))


def test_ids_are_those_of_transformers_with_the_same_tools(codec):
    messages = [{k: v for k, v in m.items() if k != "tools"} for m in CONVERSATION[:4]]
    schema = {**SCHEMA, "function": {**SCHEMA["function"], "description": "plain"}}
    peer = AutoTokenizer.from_pretrained(codec.tokenizer.folder)
    wanted = peer.apply_chat_template(messages, tools=[schema], add_generation_prompt=True, return_dict=False)
    ours = codec.prompt_ids([messages[0], {**messages[1], "tools": [schema]}, *messages[2:]])
    assert ours == list(wanted)


def test_the_proof_covers_calls_and_tools(codec):
    proof = prove(codec, [Row("r", CONVERSATION)])
    assert proof.passed, [o for o in proof.obligations if not o.passed]
    assert not proof.refused


def test_control_tokens_in_schemas_and_arguments_stay_text(codec):
    encoded = codec.encode(Row("r", CONVERSATION))[0]
    stop = codec.tokenizer.control_tokens["<|im_end|>"]
    assert encoded.ids.count(stop) == len(CONVERSATION)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ((ASKED, {"role": "assistant", "content": "yes"}), "leaves out the tools"),
        (
            ({"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call("x")]}),
            "tool call",
        ),
    ],
)
def test_a_template_without_tools_is_refused(tmp_path, messages, words):
    codec = ChatCodec(Tokenizer.load(make_family(CHATML, tmp_path)))
    with pytest.raises(TemplateError, match=words) as caught:
        codec.encode(Row("r", messages))
    assert "knows no tools" in caught.value.hint


def test_a_call_without_a_stop_token_is_refused(tmp_path):
    template = TOOLS_CHATML.replace("</tool_call>{% endfor %}<|im_end|>", "</tool_call>{% endfor %}")
    codec = ChatCodec(Tokenizer.load(make_family(CHATML, tmp_path, template=template)))
    with pytest.raises(TemplateError, match="no stop token ends the tool call"):
        codec.encode(Row("r", CONVERSATION[:4] + CONVERSATION[7:]))


def test_turns_of_weight_0_are_context(codec):
    chat = [{"role": role, "content": f"{role} {i}"} for i in range(3) for role in ("user", "assistant")]
    chat[1]["train"] = chat[3]["train"] = False
    encoded = codec.encode(Row("r", tuple(chat)))[0]
    assert trained_texts(codec, encoded) == ["assistant 2<|im_end|>"]
    assert prove(codec, [Row("r", tuple(chat))]).passed
    chat[3].pop("train")
    assert len(runs(codec.encode(Row("r", tuple(chat)))[0].trained)) == 2


def test_segments_are_trained_to_the_letter(codec):
    segments = (("<|im_start|>user\n hi<|im_end|>", False), ("\nhello  ", True), ("x", False), ("<|im_end|>", True))
    encoded = codec.encode(Row("r", text="".join(t for t, _ in segments), segments=segments))[0]
    assert codec.tokenizer.decode(encoded.ids) == "".join(text for text, _ in segments)
    assert trained_texts(codec, encoded) == ["\nhello  ", "<|im_end|>"]
    with pytest.raises(TemplateError, match="no token"):
        codec.encode(Row("r", text="a", segments=(("a", False),)))

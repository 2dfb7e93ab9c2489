"""Every family x conversation shapes: ids equal transformers', the trained text is the answer and its stop token."""

import pytest
from transformers import AutoTokenizer

from luthier.bases.tokenizer import Tokenizer
from luthier.chat.codec import ChatCodec
from luthier.chat.families.registry import FAMILIES, family_of
from luthier.chat.obligations import runs
from luthier.chat.proof import prove
from luthier.chat.show import mask_view
from luthier.errors import TemplateError
from luthier.types import Row
from tests.chat.build import chat, make_family

UNICODE = "Grüße 日本語 🙂\n\n  indented\ttab  42  7"
CONVERSATIONS = {
    "one turn": chat("What is it?", "It is 4."),
    "two turns": chat("What is it?", "It is 4.", "And now?", "5"),
    "three turns": chat("a", "b", "c d", "e f", "g", "h"),
    "unicode": chat(UNICODE, UNICODE.strip() + "."),
    "unicode history": chat("é", "ü\nß", UNICODE, "🙂"),
    "equal texts": chat("same", "same", "same", "same"),
    "stop word as text": chat("say assistant", "assistant user system model"),
}
SYSTEM = {
    "system": chat("What is it?", "It is 4.", system="Return JSON."),
    "system two turns": chat("a", "b", "c", "d", system="Be brief.\nAlways."),
}


@pytest.fixture(scope="module", params=list(FAMILIES))
def setup(request, tmp_path_factory):
    family = FAMILIES[request.param]
    folder = make_family(family, tmp_path_factory.mktemp(family.name))
    theirs = AutoTokenizer.from_pretrained(folder)
    codec = ChatCodec(Tokenizer.load(folder))
    if family.name == "plain":
        theirs.chat_template = family.template  # transformers knows no default template
    return family, codec, theirs


def their_ids(theirs, messages, **options):
    return list(theirs.apply_chat_template(list(messages), tokenize=True, return_dict=False, **options))


def trained_texts(codec, encoded):
    return [codec.tokenizer.decode(encoded.ids[a:b]) for a, b in runs(encoded.trained)]


def test_ids_equal_transformers_and_trained_text_is_the_answer(setup):
    family, codec, theirs = setup
    for name, messages in (CONVERSATIONS | (SYSTEM if family.has_system else {})).items():
        (encoded,) = codec.encode(Row(id="r", messages=messages))
        assert list(encoded.ids) == their_ids(theirs, messages), (family.name, name)
        answers = [m["content"] for m in messages if m["role"] == "assistant"]
        got = trained_texts(codec, encoded)
        assert len(got) == len(answers)
        for text, answer in zip(got, answers, strict=True):
            assert text.endswith(family.stop)
            assert text.removesuffix(family.stop).strip() == answer.strip(), (family.name, name)
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                served = their_ids(theirs, messages[:i], add_generation_prompt=True)
                assert codec.prompt_ids(messages[:i]) == served
                assert list(encoded.ids[: len(served)]) == served


def test_injected_control_tokens_stay_text(setup):
    family, codec, theirs = setup
    for token in family.control:
        messages = chat(f"hi {token}{token} there", f"no {token} here", f"{token}x", "done")
        (encoded,) = codec.encode(Row(id="r", messages=messages))
        clean = codec.encode(Row(id="r", messages=chat("hi there", "no here", "x", "done")))[0]
        for text, token_id in codec.tokenizer.special_tokens.items():
            assert encoded.ids.count(token_id) == clean.ids.count(token_id), (family.name, token, text)
        assert theirs.decode(encoded.ids) == theirs.decode(their_ids(theirs, messages))
        spoken = [text.removesuffix(family.stop).strip() for text in trained_texts(codec, encoded)]
        assert spoken == [f"no {token} here", "done"]


def test_literal_encoding_equals_transformers_sanitizer(setup):
    family, codec, theirs = setup
    messages = chat(f"hi {family.stop} there {family.control[0]}", "fine")
    (encoded,) = codec.encode(Row(id="r", messages=messages))
    try:
        wanted = their_ids(theirs, messages, sanitize_control_tokens=True)
    except TypeError:
        pytest.skip("this transformers has no sanitize_control_tokens")
    got, kept = list(encoded.ids), codec.tokenizer.decode(encoded.ids)
    assert kept == theirs.decode(wanted)
    specials = set(codec.tokenizer.special_tokens.values())
    assert [i for i in got if i in specials] == [i for i in wanted if i in specials]


def test_guarded_route_equals_plain_route_without_injection(setup):
    """The twin tokenizer, forced onto text with no look-alike in the span, must give the plain encoding and offsets."""
    family, codec, _ = setup
    for messages in CONVERSATIONS.values():
        text = codec.renderer.text(messages)
        ids, offsets = codec.tokenizer.encode_spans(text, [(0, 0)])
        plain_ids, plain_offsets = codec.tokenizer.encode_offsets(text)
        assert ids == plain_ids, family.name
        assert offsets == plain_offsets


def test_proof_passes(setup):
    family, codec, _ = setup
    cases = list((CONVERSATIONS | (SYSTEM if family.has_system else {})).values())
    cases.append(chat(f"a {family.stop} b", f"c {family.stop} d"))
    proof = prove(codec, [Row(id=str(i), messages=m) for i, m in enumerate(cases)])
    assert proof.passed, proof
    assert not proof.refused
    assert [o.id for o in proof.obligations] == [f"P{i}" for i in range(1, 9)]
    assert all(o.num_checked >= len(cases) for o in proof.obligations)


def test_system_role_refused_with_the_next_move(setup):
    family, codec, _ = setup
    row = Row(id="r", messages=SYSTEM["system"], source="a.jsonl", line=7)
    if family.has_system:
        codec.encode(row)
        return
    with pytest.raises(TemplateError, match=r"a\.jsonl:7: .*system") as caught:
        codec.encode(row)
    assert "data.system" in caught.value.hint


def test_parse_is_the_inverse_of_the_trained_span(setup):
    _, codec, _ = setup
    (encoded,) = codec.encode(Row(id="r", messages=chat("q", f"the answer {UNICODE.strip()}")))
    start, end = runs(encoded.trained)[0]
    assert codec.parse(encoded.ids[start:end]) == f"the answer {UNICODE.strip()}"
    assert codec.parse([*encoded.ids[start:end], *encoded.ids[start:end]]) == f"the answer {UNICODE.strip()}"
    ids, first = codec.encode_answer(chat("q"), f"the answer {UNICODE.strip()}")
    assert ids == list(encoded.ids[:end]) and first == start


def test_mask_view_spells_the_row(setup):
    _, codec, _ = setup
    row = Row(id="r", messages=chat("What?", "That."))
    view = mask_view(codec, row)
    assert "".join(text for text, _ in view) == codec.renderer.text(row.messages)
    assert "That." in "".join(text for text, trained in view if trained)


def test_families_are_recognised(setup):
    family, codec, _ = setup
    wanted = "chatml" if family.name == "chatml-default-system" else family.name
    assert codec.family == wanted == family_of(codec.tokenizer.chat_template)
    assert family_of("{{ messages }}") == "other"

"""Go templates proved equal to each family's own template, and what a Modelfile says when none is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from luthier.bases.tokenizer import Tokenizer as BaseTokenizer
from luthier.chat.codec import ChatCodec
from luthier.chat.families.registry import FAMILIES
from luthier.errors import ArtifactError, TemplateError
from luthier.ship.go_template import render_go
from luthier.ship.modelfile import match_family, write_modelfile

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "Because."},
    {"role": "user", "content": "And?"},
]
EXPECTED = {"chatml-default-system": "chatml"}


def codec_for(name: str, folder: Path, template: str | None = None) -> ChatCodec:
    """A byte-level tokenizer with the family's control tokens and template."""
    family = FAMILIES[name]
    letters = [letter for letter in sorted(pre_tokenizers.ByteLevel.alphabet()) if letter not in family.control]
    vocab = {text: index for index, text in enumerate([*family.control, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(family.control))
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": family.bos, "eos_token": family.stop}))
    if name != "plain":
        (folder / "chat_template.jinja").write_text(template or family.template)
    return ChatCodec(BaseTokenizer.load(folder))


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "plain"])
def test_family_is_found_and_equal_on_a_conversation_of_its_own(name, tmp_path):
    codec = codec_for(name, tmp_path)
    match = match_family(codec)
    assert match is not None and match.family == EXPECTED.get(name, name)
    talk = TALK if match.system_role else TALK[1:]
    rendered = codec.renderer.text(talk, add_generation_prompt=True)
    bos = codec.tokenizer.named_tokens.get("bos_token", "")
    assert render_go(match.template, talk) in (rendered, rendered.removeprefix(bos))
    assert match.system_role == FAMILIES[name].has_system


def test_default_system_is_written_as_system(tmp_path):
    text = write_modelfile("model-q8_0.gguf", codec_for("chatml-default-system", tmp_path), num_ctx=1024)
    assert "FROM ./model-q8_0.gguf\n" in text and 'SYSTEM """You are a careful assistant."""' in text
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert "PARAMETER num_ctx 1024\nPARAMETER temperature 0\n" in text


def test_every_stop_is_written(tmp_path):
    codec_for("llama3", tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 4]}))
    text = write_modelfile("m.gguf", ChatCodec(BaseTokenizer.load(tmp_path)), num_ctx=8, system="Answer in JSON.")
    assert 'PARAMETER stop "<|end_of_text|>"\nPARAMETER stop "<|eot_id|>"' in text
    assert 'SYSTEM """Answer in JSON."""' in text and "strips spaces" in text


def test_one_changed_character_is_not_proved_equal(tmp_path):
    changed = FAMILIES["chatml"].template.replace("<|im_end|>\n", "<|im_end|> \n", 1)
    codec = codec_for("chatml", tmp_path, template=changed)
    assert match_family(codec) is None
    text = write_modelfile("m.gguf", codec, num_ctx=8)
    assert "CHECK THE TEMPLATE" in text and "TEMPLATE " not in text.replace("THE TEMPLATE", "")


def test_dropped_system_turn_is_not_proved_equal(tmp_path):
    drops = "{% for message in messages if message.role != 'system' %}" + FAMILIES["chatml"].template.split("-%}", 1)[1]
    assert match_family(codec_for("chatml", tmp_path, template=drops)) is None


def test_plain_model_says_so(tmp_path):
    assert "CHECK THE TEMPLATE" in write_modelfile("m.gguf", codec_for("plain", tmp_path), num_ctx=8)


def test_system_prompt_on_a_model_without_system_role_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="takes no system turn"):
        write_modelfile("m.gguf", codec_for("gemma", tmp_path), num_ctx=8, system="Be brief.")


@pytest.mark.parametrize("system", ['say """', 'ends in a quote"'])
def test_unquotable_system_is_refused(tmp_path, system):
    with pytest.raises(ArtifactError, match="Ollama cannot read"):
        write_modelfile("m.gguf", codec_for("chatml", tmp_path), num_ctx=8, system=system)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ .System }}|{{/* note */}}x", "Be brief.|x"),
        ("a  {{- if .System }}  b  {{- end -}}  c", "a  bc"),
        ("{{ range .Messages }}{{ .Role }},{{ end }}", "system,user,assistant,user,"),
        (
            "{{ range $i, $m := .Messages }}{{ if gt $i 1 }}{{ $m.Content }}{{ else }}-{{ end }}{{ end }}",
            "--Because.And?",
        ),
        (
            "{{ range $i, $m := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
            "{{ if not $last }}{{ $i }}{{ end }}{{ end }}",
            "012",
        ),
        (
            '{{ range .Messages }}{{ if eq .Role "user" "tool" }}u{{ else if ne .Role "system" }}a{{ end }}{{ end }}',
            "uau",
        ),
        ('{{ if and .System (or "" "x") }}{{ "\\n" }}{{ end }}', "\n"),
        ("{{ if le (len .Messages) 3 }}few{{ else }}many{{ end }}", "many"),
    ],
)
def test_go_semantics(template, expected):
    assert render_go(template, TALK) == expected


@pytest.mark.parametrize(
    "template",
    [
        "{{ if .System }}",
        "{{ end }}",
        "{{ .Nope }}",
        "{{ json .Messages }}",
        "{{ $x }}",
        "{{ eq (len .Messages 1 }}",
        "{{ | }}",
    ],
)
def test_what_the_interpreter_does_not_know_raises(template):
    with pytest.raises(TemplateError, match="Go template"):
        render_go(template, TALK)

"""Ollama Modelfile: FROM, TEMPLATE (Go), SYSTEM, every stop, num_ctx, temperature 0.

Which Go template belongs to a model is not guessed from names: probe conversations are rendered with the model's own
template and with each family's Go text (the text that would be written, run by `go_template`), and only an equal one
is written. No family equal -> no TEMPLATE, and a comment that says what must be checked. Source:
docs.ollama.com/modelfile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from luthier.chat.codec import ChatCodec
from luthier.errors import ArtifactError, TemplateError
from luthier.ship.gguf_vocab import adds_bos
from luthier.ship.go_template import render_go
from luthier.types import Message

_Render = Callable[[Sequence[Message]], str]  # prompt text, generation prompt included; raises when refused

_CHATML = "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
_LLAMA3_TURN = "<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n{{ .Content }}<|eot_id|>"
_LLAMA3_OPEN = "<|start_header_id|>assistant<|end_header_id|>\n\n"
_LLAMA31_HEAD = (
    "<|start_header_id|>system<|end_header_id|>\n\n"
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n{{ .System }}<|eot_id|>"
)
_FIRST_SYSTEM = "{{ if and $.System (le $i 1) }}{{ $.System }}\n\n{{ end }}"
_LAST_SYSTEM = "{{ if and $.System (eq (len (slice $.Messages $i)) 1) }}{{ $.System }}\n\n{{ end }}"


def _mistral(user_end: str, answer_start: str, answer_end: str, system: str) -> str:
    return (
        '{{ range $i, $m := .Messages }}{{ if eq .Role "user" }}[INST] '
        + system
        + "{{ .Content }}"
        + user_end
        + "[/INST]"
        '{{ else if eq .Role "assistant" }}' + answer_start + "{{ .Content }}" + answer_end + "{{ end }}{{ end }}"
    )


FAMILIES: dict[str, tuple[str, ...]] = {
    "chatml": (_CHATML,),
    "llama3": (
        "{{ range .Messages }}" + _LLAMA3_TURN + "{{ end }}" + _LLAMA3_OPEN,
        _LLAMA31_HEAD
        + '{{ range .Messages }}{{ if ne .Role "system" }}'
        + _LLAMA3_TURN
        + "{{ end }}{{ end }}"
        + _LLAMA3_OPEN,
    ),
    "mistral": tuple(
        _mistral(user_end, start, end, system)
        for user_end, start in ((" ", " "), ("", " "), (" ", ""), ("", ""))
        for end in ("</s>", " </s>", "</s> ")
        for system in (_FIRST_SYSTEM, _LAST_SYSTEM)
    ),
    "llama2": (
        '{{ range $i, $m := .Messages }}{{ if eq .Role "user" }}{{ if gt $i 1 }}<s>{{ end }}[INST] '
        "{{ if and $.System (le $i 1) }}<<SYS>>\n{{ $.System }}\n<</SYS>>\n\n{{ end }}{{ .Content }} [/INST]"
        '{{ else if eq .Role "assistant" }} {{ .Content }} </s>{{ end }}{{ end }}',
    ),
    "gemma": (
        '{{ range $i, $m := .Messages }}{{ if eq .Role "user" }}<start_of_turn>user\n'
        + _FIRST_SYSTEM
        + "{{ .Content }}"
        '<end_of_turn>\n{{ else if eq .Role "assistant" }}<start_of_turn>model\n{{ .Content }}<end_of_turn>\n{{ end }}'
        "{{ end }}"
        "<start_of_turn>model\n",
    ),
    "phi3": (
        "{{ range .Messages }}<|{{ .Role }}|>\n{{ .Content }}<|end|>\n{{ end }}<|assistant|>\n",
        '{{ range .Messages }}{{ if ne .Role "system" }}<|{{ .Role }}|>\n{{ .Content }}<|end|>\n{{ end }}{{ end }}'
        "<|assistant|>\n",
        "{{ range .Messages }}<|im_start|>{{ .Role }}<|im_sep|>{{ .Content }}<|im_end|>{{ end }}"
        "<|im_start|>assistant<|im_sep|>",
    ),
    "zephyr": ("{{ range .Messages }}<|{{ .Role }}|>\n{{ .Content }}</s>\n{{ end }}<|assistant|>\n",),
}
"""Go templates by family; several where checkpoints of one family differ in spaces or in where the system turn goes.

<s> and </s> stand for the tokenizer's own BOS and EOS texts. Zephyr comes last: with the right EOS it equals Phi-3."""

_USER: Message = {"role": "user", "content": 'First {{ question }}: "why"?\nSecond line, é.'}
_ANSWER: Message = {"role": "assistant", "content": '{"because": [1, 2]}'}
_AGAIN: Message = {"role": "user", "content": "And then?"}
_SYSTEM: Message = {"role": "system", "content": "Answer in JSON."}
_PLAIN_PROBES = ([_USER], [_USER, _ANSWER, _AGAIN])
_SYSTEM_PROBES = ([_SYSTEM, _USER], [_SYSTEM, _USER, _ANSWER, _AGAIN])
_PADDED: list[Message] = [{"role": "user", "content": "  padded  "}]
_MARK = "\x00system\x00"


@dataclass(frozen=True)
class GoMatch:
    """The Go template proved equal. `default_system`: what the model's template puts in when no system turn is given.

    `system_role`: False when the model's template refuses system turns. `trims`: True when it strips spaces around
    contents, which Ollama does not.
    """

    family: str
    template: str
    default_system: str
    system_role: bool
    trims: bool


def match_family(codec: ChatCodec) -> GoMatch | None:
    """The family whose Go template gives exactly what the codec's template gives on every probe, or None."""
    tokenizer = codec.tokenizer
    bos, eos = (tokenizer.named_tokens.get(name, "") for name in ("bos_token", "eos_token"))
    added = bos if adds_bos(tokenizer) else ""  # the runner itself puts it first, so it is no part of the Go template

    def render(messages: Sequence[Message]) -> str:
        return codec.renderer.text(messages, add_generation_prompt=True).removeprefix(added)

    for family, templates in FAMILIES.items():
        for template in templates:
            match = _try(family, template.replace("</s>", eos).replace("<s>", bos), render)
            if match is not None:
                return match
    return None


def _try(family: str, template: str, render: _Render) -> GoMatch | None:
    try:
        default = _default_system(template, render)
    except TemplateError:  # a template that refuses a lone user turn belongs to no family here
        return None
    if default is None:
        return None
    given: list[Message] = [{"role": "system", "content": default}] if default else []
    if any(render_go(template, [*given, *probe]) != render(probe) for probe in _PLAIN_PROBES):
        return None
    system_role = True
    try:
        if any(render_go(template, probe) != render(probe) for probe in _SYSTEM_PROBES):
            return None
    except TemplateError:  # Gemma's template raises on a system turn
        system_role = False
    trims = render_go(template, [*given, *_PADDED]) != render(_PADDED)
    return GoMatch(family, template, default, system_role, trims)


def _default_system(template: str, render: _Render) -> str | None:
    """'' when the template adds no system turn of its own, its text when it adds one, None when neither fits."""
    wanted, probe = render(_PLAIN_PROBES[0]), _PLAIN_PROBES[0]
    if render_go(template, probe) == wanted:
        return ""
    before, mark, after = render_go(template, [{"role": "system", "content": _MARK}, *probe]).partition(_MARK)
    if mark and wanted.startswith(before) and wanted.endswith(after) and len(wanted) > len(before) + len(after):
        return wanted[len(before) : len(wanted) - len(after)]
    return None


def write_modelfile(
    model_file: str,
    codec: ChatCodec,
    *,
    num_ctx: int,
    system: str = "",
    licence: str = "",
    comments: Sequence[str] = (),
) -> str:
    """The Modelfile's text for GGUF `model_file` (a path relative to the Modelfile); `codec` is what training used.

    num_ctx: tokens of context (Ollama's small default cuts silently). Raises ArtifactError when `system` is given and
    the model's template takes none, or a text cannot be quoted.
    """
    match = match_family(codec)
    stops = [codec.tokenizer.decode([token]) for token in sorted(codec.stop_ids)]
    lines = [f"# {comment}" for comment in comments]
    lines.append(f"FROM ./{model_file}")
    if match is None:
        lines += [
            "# CHECK THE TEMPLATE: this model's chat template equals none of the Go templates luthier knows "
            f"({', '.join(FAMILIES)}).",
            "# Ollama will guess one from the GGUF file; compare its prompt with the training prompt before use.",
        ]
    else:
        if match.trims:
            lines.append(
                "# The original template strips spaces around every message; Ollama does not: send stripped text."
            )
        if system and not match.system_role:
            raise ArtifactError(
                f"a system prompt is set, but the chat template of this model ({match.family}) takes no system turn",
                hint="put the instruction into the user turn",
            )
        lines.append(
            f"# template family {match.family}, proved equal to the tokenizer's chat template on probe conversations"
        )
        lines.append(f"TEMPLATE {_quoted(match.template)}")
    if text := system or (match.default_system if match else ""):
        lines.append(f"SYSTEM {_quoted(text)}")
    lines += [f"PARAMETER stop {_stop(stop)}" for stop in stops]
    lines += [f"PARAMETER num_ctx {num_ctx}", "PARAMETER temperature 0"]
    if licence:
        lines.append(f"LICENSE {_quoted(licence)}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    if '"""' in text or text.endswith('"'):
        raise ArtifactError('a text for the Modelfile holds """ or ends in a quote, which Ollama cannot read')
    return f'"""{text}"""'


def _stop(text: str) -> str:
    if '"' in text or "\n" in text:
        raise ArtifactError(f"stop token {text!r} cannot be written into a Modelfile")
    return f'"{text}"'

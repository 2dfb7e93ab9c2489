"""Chat markers that a template writes but the tokenizer does not know: a sign of a template made for another base.

`<|start_header_id|>` is one token for Llama 3; a ChatML base reads it as a dozen pieces of punctuation, which no one
taught it. What stands around the contents of a rendered conversation is looked at, never the contents.
"""

from __future__ import annotations

import re

from luthier.chat.codec import ChatCodec
from luthier.errors import TemplateError

_MARKER = re.compile(r"<\|[^|<>\s]{1,40}\|>|<(?:start|end)_of_turn>|\[/?(?:INST|SYSTEM_PROMPT|TOOL_CALLS)\]")
_TURNS = ("user", "assistant", "user")
_CONTENT = "word"


def split_markers(codec: ChatCodec) -> list[str]:
    """The markers, in order of appearance, that are more than one token although the tokenizer has chat markers.

    Empty for a base that knows no marker at all: there every template is made of plain text.
    """
    tokenizer = codec.tokenizer
    if not any(_MARKER.fullmatch(text) for text in tokenizer.special_tokens):
        return []
    try:
        text = codec.renderer.text([{"role": role, "content": _CONTENT} for role in _TURNS])
    except TemplateError:  # the proof of the mask says what is wrong with it
        return []
    found = dict.fromkeys(match.group() for match in _MARKER.finditer(text))
    return [marker for marker in found if len(tokenizer.encode(marker)) > 1]

"""Plain completion: for a base model without a chat template. Turns are lines; an answer ends with EOS.

Contents are trimmed and the prompt ends with a single newline: a GPT-2-like tokenizer reads two newlines as one token
at the end of a text and as two before a word, so that a prompt ending in a blank line is no prefix of what follows.
This is the one template that the product itself uses (when the tokenizer brings none). `adds_bos` is set by the codec.
"""

from luthier.chat.families.family import Family

PLAIN = Family(
    name="plain",
    template="""{% if adds_bos %}{{ bos_token }}{% endif %}
{% for message in messages %}
{{- message.content | trim + (eos_token if message.role == 'assistant' else '') + '\\n' }}
{%- endfor %}""",
    control=("<|endoftext|>",),
    stop="<|endoftext|>",
    bos=None,
    has_system=True,
    signature=(),
    note="no roles: every turn is a line of its own, and the answer ends with EOS",
)

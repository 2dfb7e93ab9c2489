"""Phi-3: <|system|>, <|user|>, <|assistant|> and <|end|> as control tokens; stop <|end|>; <|endoftext|> is EOS."""

from luthier.chat.families.family import Family

PHI3 = Family(
    name="phi3",
    template="""{% for message in messages -%}
{{ '<|' + message.role + '|>' }}
{{ message.content }}<|end|>
{% endfor -%}
{% if add_generation_prompt -%}
<|assistant|>
{% endif %}""",
    control=("<unk>", "<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    stop="<|end|>",
    bos="<s>",
    has_system=True,
    signature=("<|end|>",),
    note="some releases flag <|end|> with rstrip, so that it swallows the newline behind it",
)

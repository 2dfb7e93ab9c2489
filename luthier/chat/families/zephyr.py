"""Zephyr: <|user|>, <|assistant|>, <|system|> written as plain text, EOS behind every turn, also the user's."""

from luthier.chat.families.family import Family

ZEPHYR = Family(
    name="zephyr",
    template="""{% for message in messages -%}
<|{{ message.role }}|>
{{ message.content }}{{ eos_token }}
{% endfor -%}
{% if add_generation_prompt -%}
<|assistant|>
{% endif %}""",
    control=("<unk>", "<s>", "</s>"),
    stop="</s>",
    bos="<s>",
    has_system=True,
    signature=("eos_token", "<|assistant|>"),
    note="role tags are ordinary text; the stop token also ends user turns, so a mask by stop token alone is wrong",
)

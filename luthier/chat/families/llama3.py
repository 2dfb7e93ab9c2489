"""Llama 3: role headers in <|start_header_id|> <|end_header_id|>, stop <|eot_id|>, BOS written by the template.

generation_config.json lists <|eot_id|> beside <|end_of_text|>; a tokenizer alone may name only the latter as EOS.
"""

from luthier.chat.families.family import Family

LLAMA3 = Family(
    name="llama3",
    template="""{{ bos_token }}{% for message in messages -%}
<|start_header_id|>{{ message.role }}<|end_header_id|>

{{ message.content | trim }}<|eot_id|>
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}""",
    control=("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    stop="<|eot_id|>",
    bos="<|begin_of_text|>",
    has_system=True,
    signature=("<|start_header_id|>", "<|eot_id|>"),
    note="contents are trimmed; the template writes BOS, so the tokenizer must not add a second one",
)

"""Gemma: <start_of_turn>/<end_of_turn>, the assistant is called "model", no system role, BOS written by the template.

EOS of the tokenizer is <eos>; answers end with <end_of_turn>, which generation_config.json must list.
"""

from luthier.chat.families.family import Family

GEMMA = Family(
    name="gemma",
    template="""{{ bos_token }}{% if messages and messages[0].role == 'system' %}
{{- raise_exception('system role not supported') }}{% endif %}
{%- for message in messages -%}
<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}
{{ message.content | trim }}<end_of_turn>
{% endfor -%}
{% if add_generation_prompt -%}
<start_of_turn>model
{% endif %}""",
    control=("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
    stop="<end_of_turn>",
    bos="<bos>",
    has_system=False,
    signature=("<start_of_turn>", "<end_of_turn>"),
    note="no system role; the tokenizer's EOS is not the stop token",
)

"""Mistral [INST]: control tokens around the user text, EOS behind every answer, strict alternation, no system role."""

from luthier.chat.families.family import Family

MISTRAL = Family(
    name="mistral",
    template="""{{ bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' and loop.index0 is even %}
        {{- '[INST] ' + message.content + ' [/INST]' }}
    {%- elif message.role == 'assistant' and loop.index0 is odd %}
        {{- ' ' + message.content + eos_token }}
    {%- elif message.role == 'system' %}
        {{- raise_exception('the system role is not supported by this model') }}
    {%- else %}
        {{- raise_exception('user and assistant turns must alternate') }}
    {%- endif %}
{%- endfor %}""",
    control=("<unk>", "<s>", "</s>", "[INST]", "[/INST]"),
    stop="</s>",
    bos="<s>",
    has_system=False,
    signature=("[INST]", "[/INST]"),
    note="add_generation_prompt writes nothing: the prompt ends with [/INST]; the blank before an answer is trained",
)

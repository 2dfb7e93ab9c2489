"""Llama 2 chat: [INST] and <<SYS>> as plain text, system text in the first user turn, BOS before every user turn."""

from luthier.chat.families.family import Family

LLAMA2 = Family(
    name="llama2",
    template="""{% set ns = namespace(system='') %}
{% for message in messages %}
    {%- if message.role == 'system' %}
        {%- set ns.system = '<<SYS>>\\n' + message.content | trim + '\\n<</SYS>>\\n\\n' %}
    {%- elif message.role == 'user' %}
        {{- bos_token + '[INST] ' + ns.system + message.content | trim + ' [/INST]' }}
        {%- set ns.system = '' %}
    {%- elif message.role == 'assistant' %}
        {{- ' ' + message.content | trim + ' ' + eos_token }}
    {%- else %}
        {{- raise_exception('role ' + message.role + ' is not supported by this model') }}
    {%- endif %}
{%- endfor %}""",
    control=("<unk>", "<s>", "</s>"),
    stop="</s>",
    bos="<s>",
    has_system=True,
    signature=("<<SYS>>",),
    note="the system text is merged into the first user turn; BOS opens every user turn, as in training of the base",
)

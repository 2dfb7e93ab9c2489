"""ChatML: SmolLM2 (writes a default system turn when none is given), Qwen2. Stop token <|im_end|>; no BOS of its own.

SmolLM2's tokenizer names <|im_start|> as BOS and <|im_end|> as both EOS and PAD: never mask labels by `== pad`.
"""

from luthier.chat.families.family import Family

_TURNS = """{% for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
{% if add_generation_prompt -%}
<|im_start|>assistant
{% endif %}"""

_DEFAULT_SYSTEM = """{% if messages and messages[0].role != 'system' -%}
<|im_start|>system
You are a careful assistant.<|im_end|>
{% endif -%}
"""

CHATML = Family(
    name="chatml",
    template=_TURNS,
    control=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    stop="<|im_end|>",
    bos=None,
    has_system=True,
    signature=("<|im_start|>", "<|im_end|>"),
    note="every role takes part as it is; the newline behind <|im_end|> is not trained",
)
SMOLLM2 = Family(
    name="chatml-default-system",
    template=_DEFAULT_SYSTEM + _TURNS,
    control=CHATML.control,
    stop=CHATML.stop,
    bos="<|im_start|>",
    has_system=True,
    signature=CHATML.signature,
    note="a system turn is written even when the conversation has none",
)

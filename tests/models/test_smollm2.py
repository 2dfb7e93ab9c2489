"""The embedded default base for real: equal to transformers, packed and generated."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.models.load import load_model
from luthier.models.sampler import LocalSampler
from tests.models.folders import oracle_logits, pack, relative

QUESTIONS = ["What is the capital of France?", "Name three colours.", "Say hello to Ada, and ask how her day was."]


@pytest.mark.slow
def test_smollm2_equals_transformers(smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    reference = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    model = load_model(smollm2)
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": q}], add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
        for q in QUESTIONS
    ]
    with torch.no_grad():
        logits = model.head(model.hidden(pack(prompts, [list(range(len(p))) for p in prompts])))
        assert relative(logits, torch.cat(oracle_logits(reference, prompts))) < 1e-4
    sampler = LocalSampler(model, encode=list, decode=tokenizer.decode, stop_ids={2}, name="smollm2")
    done = sampler.sample_ids(prompts, max_new_tokens=12)
    for prompt, completion in zip(prompts, done, strict=True):
        ids = torch.tensor([prompt])
        want = reference.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        assert list(completion.ids) == want[0, len(prompt) :].tolist()
    assert "Paris" in done[0].text

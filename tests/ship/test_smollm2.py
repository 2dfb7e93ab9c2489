"""The embedded default base through the whole room, read back by transformers and by llama.cpp."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, GgufConfig

from luthier.models.load import load_model
from luthier.ship.gguf_file import KINDS, SafetensorsFolder, unpack_gguf, write_gguf
from luthier.ship.llama_cpp import LlamaCpp, missing_reason
from luthier.ship.merge import merge
from luthier.ship.modelfile import match_family
from luthier.ship.parity import (
    LlamaCppCandidate,
    ModelCandidate,
    ParityRow,
    judge,
    model_logits,
    parity,
    record_reference,
)
from tests.ship.bases import codec_of, load, logits_of

pytestmark = pytest.mark.slow
LIMITS = {"f16": (2e-3, 0.99), "int8": (0.01, 0.97), "int4": (0.10, 0.85)}
TALKS = [
    ("What is the capital of France?", "The capital of France is Paris."),
    (
        "Write a haiku about 3 rivers.",
        "Rivers flow gently,\nThree paths through the quiet hills,\nMeeting the wide sea.",
    ),
    ('Classify: "My order 1234 never arrived!"', '{"category": "delivery", "refund": true, "urgency": 3}'),
]


@pytest.fixture(scope="module")
def shipped(smollm2, tmp_path_factory):
    """(merged folder, parity rows): SmolLM2 with a random delta of 5% of every projection's norm."""
    folder = tmp_path_factory.mktemp("smollm2")
    generator, weights = torch.Generator().manual_seed(0), {}
    with SafetensorsFolder(smollm2) as base:
        for name in (name for name in base.names if name.endswith("proj.weight")):
            weight = base.tensor(name).float()
            a = torch.randn(16, weight.shape[1], generator=generator)
            b = torch.randn(weight.shape[0], 16, generator=generator)
            b *= 0.05 * weight.norm() / (2 * (b @ a).norm())
            module = "base_model.model." + name.removesuffix(".weight")
            weights |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    (folder / "adapter").mkdir()
    save_file(weights, folder / "adapter/adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "bias": "none"}
    (folder / "adapter/adapter_config.json").write_text(json.dumps(config))
    assert merge(smollm2, folder / "adapter", folder / "merged").num_modules == 210
    codec, rows = codec_of(smollm2), []
    for index, (question, answer) in enumerate(TALKS):
        messages = ({"role": "user", "content": question},)
        ids = codec.tokenizer.encode(answer + "<|im_end|>")
        rows.append(ParityRow(str(index), tuple(codec.prompt_ids(messages)), tuple(ids), messages))
    return folder / "merged", rows


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gguf-q4_0"])
def test_every_kind_passes_its_limits(shipped, kind, tmp_path):
    merged, rows = shipped
    reference = record_reference(logits_of(load(merged)), rows, tmp_path / "reference.npy")
    report = write_gguf(merged, tmp_path / "x.gguf", kind)
    assert report.pre == "smollm"
    kl, top1 = LIMITS[KINDS[kind].tier]
    plain = load_model(unpack_gguf(tmp_path / "x.gguf", merged, tmp_path / "plain"))
    readers = [ModelCandidate("luthier", model_logits(plain), codec_of(merged).prompt_ids)]
    if missing_reason() is None:
        readers.append(LlamaCppCandidate(LlamaCpp(tmp_path / "x.gguf", num_ctx=512, num_threads=2)))
    for reader in readers:
        record = judge(kind, reader.name, parity(reference, reader), {"kl": kl, "top1": top1})
        assert record.passed and record.metrics.prompts_equal == 1.0, record


def test_transformers_reads_the_file(shipped, tmp_path):
    merged, _ = shipped
    write_gguf(merged, tmp_path / "x.gguf", "gguf-f16")
    options = {"gguf_file": "x.gguf", "quantization_config": GgufConfig(dequantize=True)}
    found, expected = load(tmp_path, **options).state_dict(), load(merged).state_dict()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-5, msg=name)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file="x.gguf")
    # transformers has no splitter for `smollm` and reads it as GPT-2's: equal but for runs of digits.
    text = "Hello, naïve world\n\n  and <|im_start|> control"
    assert tokenizer(text, add_special_tokens=False).input_ids == codec_of(merged).tokenizer.encode(text)
    assert tokenizer.chat_template == codec_of(merged).tokenizer.chat_template


def test_modelfile_template_is_proved(smollm2):
    match = match_family(codec_of(smollm2))
    assert match is not None and match.family == "chatml" and "SmolLM" in match.default_system

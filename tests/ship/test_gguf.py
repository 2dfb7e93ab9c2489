"""Our GGUF files as others read them: transformers' loader, llama.cpp, and our own dequantising reader."""

from __future__ import annotations

import json
import shutil
import unicodedata

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, GgufConfig

from luthier.errors import ArtifactError
from luthier.ship.gguf_file import KINDS, GgufLineage, check_exportable, unpack_gguf, write_gguf
from luthier.ship.gguf_vocab import LLAMA3_SPLIT, QWEN2_SPLIT, TEKKEN_SPLIT
from luthier.ship.llama_cpp import LlamaCpp, LlamaCppSampler, missing_reason
from luthier.ship.parity import LlamaCppCandidate, ModelCandidate, judge, parity, record_reference
from tests.ship.bases import ARCHS, codec_of, load, logits_of, parity_rows, sentencepiece_style, sharp_base

needs_llama_cpp = pytest.mark.skipif(missing_reason() is not None, reason=missing_reason() or "")
TEXTS = (
    "Hello, world! It's 2026: 12345 things.",
    "  two spaces,\ttab\n\nand lines \n end ",
    "naïve café, 日本語, 🙂 e\u0301",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
)
F16 = {"kl": 1e-5, "top1": 1.0}


@pytest.fixture(scope="module", params=ARCHS)
def case(request, tmp_path_factory):
    """(arch, base folder, F16 file)."""
    folder = tmp_path_factory.mktemp(request.param)
    base = sharp_base(folder / "base", request.param)
    write_gguf(base, folder / "f16.gguf", "gguf-f16", lineage=GgufLineage("tiny", "d1", "the-base", "d0", "Apache-2.0"))
    return request.param, base, folder / "f16.gguf"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return sharp_base(tmp_path_factory.mktemp("gguf") / "base")


def test_transformers_reads_the_same_weights(case):
    _, base, path = case
    expected = load(base).state_dict()
    options = {"gguf_file": path.name, "quantization_config": GgufConfig(dequantize=True)}
    found = load(path.parent, **options).state_dict()
    assert set(found) == set(expected)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-6, msg=name)


def test_transformers_reads_the_same_tokenizer(case):
    arch, base, path = case
    if arch == "qwen2":
        pytest.skip("transformers gives every qwen2 GGUF Qwen's own splitter, whatever tokenizer.ggml.pre says")
    theirs, ours = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name), codec_of(base).tokenizer
    for text in TEXTS:
        assert theirs(text, add_special_tokens=False).input_ids == ours.encode(text), text
    assert theirs.chat_template == ours.chat_template
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos_id, ours.eos_id)


@needs_llama_cpp
def test_llama_cpp_gives_the_same_answers(case, tmp_path):
    _, base, path = case
    rows = parity_rows(base)
    reference = record_reference(logits_of(load(base)), rows, tmp_path / "reference.npy")
    with LlamaCpp(path, num_ctx=256, num_threads=1) as runner:
        tokenizer = codec_of(base).tokenizer
        for text in TEXTS:
            assert runner.tokenize(text) == tokenizer.encode(text), text
        metrics = parity(reference, LlamaCppCandidate(runner, num_top=1024))
    assert metrics.prompts_equal == 1.0
    assert judge("gguf-f16", "llama.cpp", metrics, F16).passed, metrics


@pytest.mark.known_bug("RO")
@needs_llama_cpp
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_rope_scaling_reaches_llama_cpp(rope, tmp_path):
    base = sharp_base(tmp_path / "base", "llama", rope_parameters={"rope_theta": 10_000.0} | rope)
    assert_llama_cpp_agrees(base, tmp_path)


@needs_llama_cpp
def test_longrope_reaches_llama_cpp(tmp_path):
    rope = {"rope_type": "longrope", "short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [4.0] * 8}
    rope |= {"rope_theta": 10_000.0, "original_max_position_embeddings": 512}
    base = sharp_base(
        tmp_path / "base",
        "phi3",
        rope_parameters=rope,
        original_max_position_embeddings=512,
        max_position_embeddings=2048,
    )
    assert_llama_cpp_agrees(base, tmp_path)


def assert_llama_cpp_agrees(base, tmp_path):
    reference = record_reference(logits_of(load(base)), parity_rows(base), tmp_path / "reference.npy")
    write_gguf(base, tmp_path / "f16.gguf", "gguf-f16")
    with LlamaCpp(tmp_path / "f16.gguf", num_ctx=256, num_threads=1) as runner:
        metrics = parity(reference, LlamaCppCandidate(runner, num_top=1024))
    assert judge("gguf-f16", "llama.cpp", metrics, F16).passed, metrics


@needs_llama_cpp
@pytest.mark.parametrize("style", ["llama", "gemma", "phi3"])
def test_sentencepiece_tokenizers_reach_llama_cpp(style, tmp_path):
    base = sharp_base(tmp_path / "base", {"llama": "llama", "gemma": "gemma2", "phi3": "phi3"}[style], vocab_size=480)
    template = (
        "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    )
    assert sentencepiece_style(base, style=style, template=template) <= 480
    write_gguf(base, tmp_path / "f16.gguf", "gguf-f16")
    codec = codec_of(base)
    with LlamaCpp(tmp_path / "f16.gguf", num_ctx=256, num_threads=1) as runner:
        for text in (*TEXTS, "<|user|>\n hello <|end|>\n<|assistant|>\nyes"):
            assert runner.tokenize(text) == codec.tokenizer.encode(text), text
        messages = [{"role": "user", "content": "hello  JSON {} 12"}]
        assert runner.chat_ids(messages) == codec.prompt_ids(messages)


def _split(regex):
    steps = [pre_tokenizers.Split(Regex(regex), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    return pre_tokenizers.Sequence(steps)


@needs_llama_cpp
@pytest.mark.parametrize(
    ("name", "splitter"),
    [
        ("gpt-2", pre_tokenizers.ByteLevel(False)),
        ("smollm", pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])),
        ("llama-bpe", _split(LLAMA3_SPLIT)),
        ("dbrx", _split(LLAMA3_SPLIT)),
        ("qwen2", _split(QWEN2_SPLIT)),
        ("tekken", _split(TEKKEN_SPLIT)),
    ],
)
def test_splitters_have_llama_cpp_s_names(name, splitter, tmp_path):
    tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
    tokenizer.pre_tokenizer = splitter
    specials, alphabet = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*TEXTS, "IT'S I'll we're 100 1000 2026 \n\n ...!!! /path/To fooBar"] * 4, trainer)
    base = sharp_base(tmp_path / "base", vocab_size=700)
    tokenizer.save(str(base / "tokenizer.json"))
    assert write_gguf(base, tmp_path / "x.gguf", "gguf-f16").pre == name
    with LlamaCpp(tmp_path / "x.gguf", num_ctx=64, num_threads=1) as runner:
        for text in (*TEXTS, "IT'S 12345 we'll\r\n\r\n x/y//z ...!!!  FooBar's ÉCOLE"):
            if name == "tekken":  # llama.cpp's twin of this regex splits combining marks off, a limit of llama.cpp
                text = unicodedata.normalize("NFC", text)
            assert runner.tokenize(text) == codec_of(base).tokenizer.encode(text), text


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_reads_back_within_its_step(llama, kind, tmp_path):
    write_gguf(llama, tmp_path / "x.gguf", kind)
    unpack_gguf(tmp_path / "x.gguf", llama, tmp_path / "plain")
    found, expected = load_file(tmp_path / "plain/model.safetensors"), load_file(llama / "model.safetensors")
    assert set(found) == set(expected)
    fine = ("embed_tokens", "v_proj", "o_proj", "down_proj")
    for name, weight in expected.items():
        steps = {"gguf-f16": 2**10, "gguf-q8_0": 120}.get(kind, 120 if name.split(".")[-2] in fine else 7)
        assert (found[name] - weight).abs().max() <= weight.abs().max() / steps, name
        assert weight.ndim > 1 or torch.equal(found[name], weight), name
    load(tmp_path / "plain")


def test_metadata_carries_lineage_template_and_stops(case):
    _, base, path = case
    fields = gguf.GGUFReader(path).fields
    read = {name: field.contents() for name, field in fields.items() if not name.startswith("tokenizer.ggml.token")}
    assert read["general.version"] == "d1" and read["general.license"] == "Apache-2.0"
    assert (read["general.base_model.0.name"], read["general.base_model.0.version"]) == ("the-base", "d0")
    assert read["tokenizer.chat_template"] == (base / "chat_template.jinja").read_text()
    assert (read["tokenizer.ggml.eos_token_id"], read["tokenizer.ggml.add_bos_token"]) == (2, False)


def test_second_stop_becomes_eot_and_lost_window_is_noted(tmp_path):
    base = sharp_base(tmp_path / "base", "mistral", sliding_window=16)
    generation = json.loads((base / "generation_config.json").read_text()) | {"eos_token_id": [2, 0]}
    (base / "generation_config.json").write_text(json.dumps(generation))
    report = write_gguf(base, tmp_path / "x.gguf", "gguf-f16")
    assert "sliding window" in report.notes[0] and report.pre == "gpt-2"
    assert gguf.GGUFReader(report.path).fields["tokenizer.ggml.eot_token_id"].contents() == 0


@needs_llama_cpp
@pytest.mark.parametrize("name", ["my-Phi-3-tickets", "phi3", "a modern-BERT rival"])
def test_no_name_makes_llama_cpp_read_another_tokenizer(llama, tmp_path, name):
    """llama.cpp goes by parts of general.name, and cannot load a file whose tokens are not those of such a model."""
    write_gguf(llama, tmp_path / "x.gguf", "gguf-f16", lineage=GgufLineage(name))
    with LlamaCpp(tmp_path / "x.gguf", num_ctx=16) as runner:
        assert runner.tokenize("<|im_end|> a")[1:] == codec_of(llama).tokenizer.encode(" a")


def _change_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("config.json", lambda c: c.update(model_type="bloom"), "llama, mistral, qwen2, gemma2, phi3"),
        ("config.json", lambda c: c["rope_parameters"].update(rope_type="dynamic"), "rope scaling 'dynamic'"),
        ("config.json", lambda c: c.update(vocab_size=10), "only 10 rows"),
        ("tokenizer.json", lambda t: t["model"].update(type="Unigram"), "BPE tokenizers only"),
        ("tokenizer.json", lambda t: t["pre_tokenizer"].update(add_prefix_space=True), "no known equal"),
        ("tokenizer.json", lambda t: t.update(normalizer={"type": "Lowercase"}), "no known equal"),
    ],
    ids=["arch", "rope", "vocab", "unigram", "splitter", "normalizer"],
)
def test_what_a_file_cannot_say_is_refused(llama, tmp_path, file, change, words):
    shutil.copytree(llama, tmp_path / "base")
    _change_json(tmp_path / "base" / file, change)
    with pytest.raises(ArtifactError, match=words):
        write_gguf(tmp_path / "base", tmp_path / "x.gguf", "gguf-f16")
    with pytest.raises(ArtifactError, match=words):  # and is known before anything is trained
        check_exportable(tmp_path / "base")
    assert not list(tmp_path.glob("*.gguf*"))


@pytest.mark.parametrize("value", [float("nan"), 1e6])
def test_weights_that_do_not_fit_are_refused(llama, tmp_path, value):
    shutil.copytree(llama, tmp_path / "base")
    weights = load_file(llama / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][3, 5] = value
    save_file(weights, tmp_path / "base/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match=r"layers\.0\.mlp\.up_proj"):
        write_gguf(tmp_path / "base", tmp_path / "x.gguf", "gguf-f16")
    assert not (tmp_path / "x.gguf").exists()


def test_unknown_kind_is_refused(llama, tmp_path):
    with pytest.raises(ArtifactError, match="gguf-q2_k"):
        write_gguf(llama, tmp_path / "x.gguf", "gguf-q2_k")


@needs_llama_cpp
def test_llama_cpp_sampler_and_stop_positions(llama, tmp_path):
    """Greedy answers equal transformers'; a position whose likeliest token is a stop token has its figures too."""
    codec, model = codec_of(llama), load(llama)
    write_gguf(llama, tmp_path / "f16.gguf", "gguf-f16")
    prompts = [[{"role": "user", "content": f"label {i}?"}] for i in range(5)]
    with LlamaCpp(tmp_path / "f16.gguf", num_ctx=256, num_threads=1, parallel=2) as runner:
        sampler = LlamaCppSampler(
            runner, encode=codec.prompt_ids, decode=codec.tokenizer.decode, stop_ids=codec.stop_ids, name="gguf-f16"
        )
        answers = sampler.sample(prompts, max_new_tokens=8)
        again = sampler.sample(prompts, max_new_tokens=8, temperature=1.0, seed=3)
        assert again == sampler.sample(prompts, max_new_tokens=8, temperature=1.0, seed=3)
        for messages, answer in zip(prompts, answers, strict=True):
            ids = torch.tensor([codec.prompt_ids(messages)])
            expected = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :].tolist()
            assert list(answer.ids) == [token for token in expected if token not in codec.stop_ids]
            assert answer.finish == ("stop" if expected[-1] in codec.stop_ids else "length")
        ids, logprobs = runner.top_logprobs(codec.prompt_ids(prompts[0]), 1024)
        full = logits_of(model)(codec.prompt_ids(prompts[0]), [len(codec.prompt_ids(prompts[0])) - 1])[0].log_softmax(
            -1
        )
        assert len(ids) == len(full) and np.abs(full[ids].numpy() - logprobs).max() < 0.05


@needs_llama_cpp
def test_llama_cpp_refuses_a_torn_file(llama, tmp_path):
    write_gguf(llama, tmp_path / "f16.gguf", "gguf-f16")
    whole = (tmp_path / "f16.gguf").read_bytes()
    (tmp_path / "torn.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match="cannot load"):
        LlamaCpp(tmp_path / "torn.gguf", num_ctx=64)


def test_wrong_permutation_is_caught_by_parity(llama, tmp_path):
    """An injected fault: k rows of one layer left unpermuted. Shapes fit, every loader accepts it, parity does not."""
    rows = parity_rows(llama)
    reference = record_reference(logits_of(load(llama)), rows, tmp_path / "reference.npy")
    shutil.copytree(llama, tmp_path / "broken")
    weights = load_file(llama / "model.safetensors")
    name = "model.layers.0.self_attn.k_proj.weight"
    weights[name] = weights[name].reshape(2, 2, 8, 64).transpose(1, 2).reshape(32, 64).contiguous()
    save_file(weights, tmp_path / "broken/model.safetensors", metadata={"format": "pt"})
    metrics = parity(reference, ModelCandidate("broken", logits_of(load(tmp_path / "broken"))))
    assert not judge("gguf-f16", "luthier", metrics, {"kl": 2e-3, "top1": 0.99}).passed


@pytest.mark.known_bug("TE1")
def test_a_head_that_the_config_calls_tied_but_is_not_reaches_the_file(tmp_path):
    """Weights win over config.json, as in load_model and in transformers; a head that is the embedding is left out."""
    base = sharp_base(tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    torch.manual_seed(3)
    head = torch.randn_like(weights["model.embed_tokens.weight"]) * 0.2
    for stored, expected in ((head, True), (weights["model.embed_tokens.weight"].clone(), False)):
        save_file(weights | {"lm_head.weight": stored}, base / "model.safetensors", metadata={"format": "pt"})
        write_gguf(base, tmp_path / "x.gguf", "gguf-f16")
        held = load_file(unpack_gguf(tmp_path / "x.gguf", base, tmp_path / "back") / "model.safetensors")
        assert ("lm_head.weight" in held) is expected
        if expected:
            torch.testing.assert_close(held["lm_head.weight"], head, rtol=1e-3, atol=1e-4)

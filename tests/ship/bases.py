"""Models and tokenizers for this room's tests: tiny models with sharp answers, and a SentencePiece-style tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM

from luthier.bases.tokenizer import Tokenizer as BaseTokenizer
from luthier.chat.codec import ChatCodec
from luthier.ship.parity import ParityRow
from tests.tiny import make_tiny_base

ARCHS = ("llama", "mistral", "qwen2", "gemma2", "phi3")
SETTINGS = {"mistral": {"sliding_window": 512}, "qwen2": {"attention_dropout": 0.0}}
_CORPUS = [
    "The quick brown fox  jumps over the lazy dog.",
    "naïve café 123 456",
    "[INST] hello [/INST] yes no JSON {}",
] * 4


def sharp_base(folder: Path, arch: str = "llama", **overrides: object) -> Path:
    """A tiny base whose weights are large enough that a wrong permutation, norm or rope shows in its answers."""
    make_tiny_base(folder, arch, **(SETTINGS.get(arch, {}) | overrides))
    weights = load_file(folder / "model.safetensors")
    torch.manual_seed(1)
    for name, weight in weights.items():
        weights[name] = weight * 6 if weight.ndim > 1 else weight + 0.2 * torch.randn_like(weight)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def load(folder: Path, **options: object) -> torch.nn.Module:
    """The folder in plain transformers, float32, eager attention (Gemma 2 needs it for its soft caps)."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", **options
    ).eval()


def logits_of(model: torch.nn.Module) -> Callable[[Sequence[int], Sequence[int]], torch.Tensor]:
    """ship.parity's LogitsFn over a transformers model."""

    def logits(ids: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        with torch.inference_mode():
            return model(torch.tensor([list(ids)]), use_cache=False).logits[0, list(positions)]

    return logits


def codec_of(folder: Path) -> ChatCodec:
    return ChatCodec(BaseTokenizer.load(folder))


def parity_rows(folder: Path, num_rows: int = 3, num_answer: int = 6) -> list[ParityRow]:
    """Rows with random answers: every position is a different question to the model."""
    codec, rows = codec_of(folder), []
    generator = torch.Generator().manual_seed(0)
    for index in range(num_rows):
        messages = ({"role": "user", "content": f"What is the label of this text {index}? naïve {{}}"},)
        answer = torch.randint(3, 290, (num_answer,), generator=generator).tolist()
        rows.append(ParityRow(f"row-{index}", tuple(codec.prompt_ids(messages)), tuple(answer), messages))
    return rows


def sentencepiece_style(folder: Path, *, style: str, template: str) -> int:
    """Writes a byte-fallback BPE tokenizer as converted from SentencePiece: every split of a token is a merge.

    style: llama (a space is put before each text), gemma (none), phi3 (as llama, control tokens strip what follows).
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(_CORPUS, trainers.BpeTrainer(vocab_size=180, show_progress=False))
    learned = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    control = ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|user|>", "<|end|>", "<|assistant|>"]
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    vocab = {text: index for index, text in enumerate([*control[:3], *bytes_, *learned, *control[3:]])}
    merges = [
        [text[:cut], text[cut:]]
        for text in learned
        for cut in range(1, len(text))
        if text[:cut] in vocab and text[cut:] in vocab
    ]
    rebuilt = Tokenizer(
        models.BPE(vocab, [tuple(m) for m in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    replace = normalizers.Replace(" ", "\u2581")
    rebuilt.normalizer = replace if style == "gemma" else normalizers.Sequence([normalizers.Prepend("\u2581"), replace])
    rebuilt.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    rebuilt.add_special_tokens(control)
    folder.mkdir(parents=True, exist_ok=True)
    rebuilt.save(str(folder / "tokenizer.json"))
    if style == "phi3":
        spec = json.loads((folder / "tokenizer.json").read_text())
        for entry in spec["added_tokens"]:
            entry["rstrip"] = entry["content"] in ("</s>", "<|user|>", "<|end|>", "<|assistant|>")
        (folder / "tokenizer.json").write_text(json.dumps(spec))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(template)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [vocab["</s>"], vocab["<|end|>"]]}))
    return len(vocab)

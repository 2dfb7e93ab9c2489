"""Builds, for each template family, a folder with a byte-level BPE tokenizer (trained here) and the template."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from luthier.chat.families.family import Family

_CORPUS = [
    "What is the label of this ticket? Answer with one word, please.",
    'The answer is {"label": "yes", "count": 3}. Grüße aus Köln, 日本語 and emoji 🙂.',
    "user assistant system model [INST] <|user|> <|assistant|> q1 q2",
    "end of paragraph\n\n\nnext one\n\n\n",
]


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _llama3() -> Tokenizer:
    tokenizer = _byte_level()
    words = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def _metaspace() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")  # no token may cross a blank
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    return tokenizer


def _prepend() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return tokenizer


_STYLES = {"byte-level": _byte_level, "llama3": _llama3, "metaspace": _metaspace, "prepend": _prepend}


def make_family(
    family: Family,
    folder: Path,
    *,
    style: str | None = None,
    rstrip: tuple[str, ...] = (),
    stops: tuple[str, ...] | None = None,
    template: str | None = None,
) -> Path:
    """Folder with tokenizer.json, tokenizer_config.json, generation_config.json and chat_template.jinja of `family`.

    style: "byte-level" (GPT-2's words), "llama3" (newlines stay together; the default for that family), or, like
    SentencePiece, "metaspace" (blank before the whole text) or "prepend" (before every piece between control tokens).
    rstrip: control tokens that swallow white space behind them. stops: texts of generation_config's eos list (default:
    the family's stop). template: another template.
    """
    style = style or ("llama3" if family.name == "llama3" else "byte-level")
    tokenizer = _STYLES[style]()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[
            AddedToken(text, special=True, normalized=False, rstrip=text in rstrip) for text in family.control
        ],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS * 3, trainer)
    if style == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    if style == "prepend":
        tokenizer.pre_tokenizer = None
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": family.stop, "pad_token": family.stop}
    if family.bos:
        config["bos_token"] = family.bos
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    ids = [tokenizer.token_to_id(text) for text in (stops if stops is not None else (family.stop,))]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    if family.name != "plain" or template:
        (folder / "chat_template.jinja").write_text(template or family.template)
    return folder


def chat(*contents: str, system: str | None = None) -> tuple[dict[str, str], ...]:
    """user, assistant, user, assistant, ... with an optional system message in front."""
    turns = [{"role": "user" if i % 2 == 0 else "assistant", "content": c} for i, c in enumerate(contents)]
    return (*([{"role": "system", "content": system}] if system is not None else []), *turns)

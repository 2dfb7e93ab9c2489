"""tokenizer.json -> the tokenizer section of a GGUF file.

Two kinds exist in the supported families: byte-level BPE (GGUF model `gpt2`: tokens, merges and the name of the regex
that splits text first, `pre`) and SentencePiece-style BPE with byte fallback (GGUF model `llama`: tokens and scores;
llama.cpp joins the neighbours whose joint token scores highest, so score = -rank of the merge gives the same pieces).
A wrong `pre` is silent in every loader, so an unknown regex is an error here. llama.cpp's pre-tokenizer table: llama-
vocab.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf

from luthier.bases.folder import read_json
from luthier.bases.tokenizer import Tokenizer
from luthier.errors import ArtifactError

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UNKNOWN_SCORE = -1e6
# llama.cpp strips behind control tokens only for files named "phi3", and then expects these (llama-vocab.cpp).
_PHI3_TOKENS = {"<unk>", "<s>", "</s>", "<|endoftext|>"}
_SPACE = "\u2581"


@dataclass
class Vocab:
    """The tokenizer section. merges belong to model 'gpt2', scores to 'llama'; ids are None when not defined."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    add_space_prefix: bool = False
    add_bos: bool = False
    bos_id: int | None = None
    eos_id: int | None = None
    unk_id: int | None = None
    pad_id: int | None = None
    stop_ids: tuple[int, ...] = ()
    chat_template: str | None = None
    strips_after_specials: bool = False


def read_vocab(folder: Path, vocab_size: int) -> Vocab:
    """Reads a Hugging Face folder's tokenizer; `vocab_size`: embedding rows (missing tokens become padding).

    Raises ArtifactError for tokenizers that GGUF cannot express.
    """
    spec = read_json(folder / "tokenizer.json")
    model = spec["model"]
    if model.get("type") != "BPE":
        raise ArtifactError(f"{folder}: tokenizer model {model.get('type')!r}; GGUF export writes BPE tokenizers only")
    sentencepiece = bool(model.get("byte_fallback"))
    vocab = Vocab("llama", "default", [], []) if sentencepiece else Vocab("gpt2", _pre_of(spec), [], [])
    _fill_tokens(vocab, spec, vocab_size)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    if sentencepiece:
        vocab.scores = _scores(vocab.tokens, merges)
        vocab.add_space_prefix = _prefixes_space(spec)
    else:
        vocab.merges = merges
    _fill_specials(vocab, Tokenizer.load(folder), spec)
    return vocab


def write_vocab(writer: gguf.GGUFWriter, vocab: Vocab) -> None:
    """Writes the tokenizer section."""
    writer.add_tokenizer_model(vocab.model)
    writer.add_tokenizer_pre(vocab.pre)
    writer.add_token_list(vocab.tokens)
    writer.add_token_types(vocab.types)
    if vocab.model == "llama":
        writer.add_token_scores(vocab.scores)
        writer.add_add_space_prefix(vocab.add_space_prefix)
    else:
        writer.add_token_merges(vocab.merges)
    adders = [
        (vocab.bos_id, writer.add_bos_token_id),
        (vocab.eos_id, writer.add_eos_token_id),
        (vocab.unk_id, writer.add_unk_token_id),
        (vocab.pad_id, writer.add_pad_token_id),
    ]
    others = [token for token in vocab.stop_ids if token != vocab.eos_id]
    adders += list(zip(others, (writer.add_eot_token_id, writer.add_eom_token_id), strict=False))
    for token, add in adders:
        if token is not None:
            add(token)
    writer.add_add_bos_token(vocab.add_bos)
    writer.add_add_eos_token(False)
    if vocab.chat_template is not None:
        writer.add_chat_template(vocab.chat_template)


def adds_bos(tokenizer: Tokenizer) -> bool:
    """True when a runner must put BOS before a prompt: the tokenizer's own rule or the template has it."""
    by_template = tokenizer.chat_template is not None and "bos_token" in tokenizer.chat_template
    return tokenizer.bos_id is not None and (by_template or tokenizer.adds_bos)


def _steps(part: Any, key: str) -> list[dict[str, Any]]:
    """A tokenizer.json normalizer or pre_tokenizer as a flat list of steps."""
    if not part:
        return []
    return [step for inner in part[key] for step in _steps(inner, key)] if part.get("type") == "Sequence" else [part]


def _pre_of(spec: dict[str, Any]) -> str:
    """The llama.cpp name of the splitting rule; raises ArtifactError when it is none that we can prove equal."""
    normalizers = [step["type"] for step in _steps(spec.get("normalizer"), "normalizers") if step["type"] != "NFC"]
    steps = _steps(spec.get("pre_tokenizer"), "pretokenizers")
    kinds = [step["type"] for step in steps]
    ignore_merges = bool(spec["model"].get("ignore_merges"))
    regexes = tuple(step["pattern"].get("Regex", "") for step in steps if step["type"] == "Split")
    uses_gpt2_regex = bool(steps) and kinds[-1] == "ByteLevel" and steps[-1].get("use_regex", True)
    prefix_space = bool(steps) and steps[-1].get("add_prefix_space", False)
    known = {
        (LLAMA3_SPLIT,): "llama-bpe" if ignore_merges else "dbrx",
        (QWEN2_SPLIT,): "qwen2",
        (TEKKEN_SPLIT,): "tekken",
    }
    if not normalizers and not prefix_space and kinds[-1:] == ["ByteLevel"]:
        if kinds == ["ByteLevel"] and uses_gpt2_regex:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and uses_gpt2_regex:
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and regexes in known and not uses_gpt2_regex:
            return known[regexes]
    raise ArtifactError(
        f"the tokenizer's splitting rule ({', '.join(kinds) or 'none'}) has no known equal in llama.cpp",
        hint="known: gpt-2, smollm, llama-bpe, dbrx, qwen2, tekken; ship the merged safetensors folder instead",
    )


def _fill_tokens(vocab: Vocab, spec: dict[str, Any], vocab_size: int) -> None:
    ids = spec["model"]["vocab"]
    added = {token["id"]: token for token in spec.get("added_tokens", ())}
    highest = max([*ids.values(), *added])
    if highest >= vocab_size:
        raise ArtifactError(
            f"the tokenizer holds token id {highest}, the embedding only {vocab_size} rows",
            hint="resize the embedding before training, or use the tokenizer that belongs to this model",
        )
    vocab.tokens = [f"[PAD{token}]" for token in range(vocab_size)]
    vocab.types = [int(gguf.TokenType.UNUSED)] * vocab_size
    unknown = spec["model"].get("unk_token")
    for text, token in ids.items():
        vocab.tokens[token] = text
        vocab.types[token] = int(gguf.TokenType.NORMAL)
        if vocab.model == "llama" and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            vocab.types[token] = int(gguf.TokenType.BYTE)
    for token, entry in added.items():
        special = entry["special"]
        # llama.cpp looks for user-defined tokens in the raw text, before spaces become the SentencePiece sign.
        text = entry["content"] if special else entry["content"].replace(_SPACE, " ")
        vocab.tokens[token] = text
        vocab.types[token] = int(gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED)
    if vocab.model == "llama" and unknown in ids:
        vocab.types[ids[unknown]] = int(gguf.TokenType.UNKNOWN)
    strips = any(entry["rstrip"] for entry in added.values())
    vocab.strips_after_specials = strips and {entry["content"] for entry in added.values()} >= _PHI3_TOKENS


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """Minus the rank of the first merge that makes the token: the order in which llama.cpp joins pieces."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", "", 1), rank)
    return [-float(ranks[token]) if token in ranks else _UNKNOWN_SCORE for token in tokens]


def _prefixes_space(spec: dict[str, Any]) -> bool:
    """True when a space is put before every text between control tokens, which is what llama.cpp's flag does.

    Metaspace 'first' puts it only before a text at the very start; a rendered chat starts with a control token, so: no.
    """
    prepends = any(step["type"] == "Prepend" for step in _steps(spec.get("normalizer"), "normalizers"))
    metaspaces = [s for s in _steps(spec.get("pre_tokenizer"), "pretokenizers") if s["type"] == "Metaspace"]
    return prepends or any(step.get("prepend_scheme", "always") == "always" for step in metaspaces)


def _fill_specials(vocab: Vocab, tokenizer: Tokenizer, spec: dict[str, Any]) -> None:
    ids = spec["model"]["vocab"] | {token["content"]: token["id"] for token in spec.get("added_tokens", ())}
    vocab.bos_id, vocab.eos_id, vocab.pad_id = tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id
    unknown = tokenizer.named_tokens.get("unk_token") or spec["model"].get("unk_token")
    vocab.unk_id = ids.get(unknown) if unknown is not None else None
    vocab.stop_ids = tuple(sorted(tokenizer.stop_ids))
    if vocab.eos_id is None and vocab.stop_ids:
        vocab.eos_id = vocab.stop_ids[0]
    vocab.chat_template = tokenizer.chat_template
    vocab.add_bos = adds_bos(tokenizer)

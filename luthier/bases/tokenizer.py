"""A thin, torch-free face on `tokenizers.Tokenizer`, with the facts that lie beside it in the folder.

Two readings of one text are needed: with control tokens recognised (what a template wrote), and as plain characters
(what a user typed). `encode_spans` mixes both in one pass: control tokens inside the given spans are text, all others
are real. How: a twin tokenizer whose control tokens are spelt between two private-use guards; only guarded ones are
recognised there, and their ids are mapped back. So SentencePiece prefixes and strip flags act as in the plain encoding.
"""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from luthier.bases.folder import read_json
from luthier.errors import BaseModelError, TemplateError
from luthier.store.publish import digest_file, digest_json

GUARD_OPEN, GUARD_CLOSE = "\U000f5350", "\U000f5351"  # plane 15, private use: no font and no corpus has them
_ROLES = ("bos", "eos", "unk", "pad", "sep", "cls", "mask")
_DIGEST_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


class Tokenizer:
    """Text <-> ids, and the ids that mean something.

    special_tokens: text -> id of every added token flagged special. control_tokens: those, and added tokens that the
    chat template writes itself. named_tokens: "bos_token" -> text and so on, what templates refer to. stop_ids: eos and
    generation_config's eos list. adds_bos: the tokenizer's own post-processor puts BOS first (plain documents want it).
    """

    def __init__(self, folder: Path, spec: dict[str, Any], config: dict[str, Any], generation: dict[str, Any]) -> None:
        self.folder = Path(folder)
        self._spec: dict[str, Any] = spec | {"truncation": None, "padding": None}
        self._plain = tokenizers.Tokenizer.from_str(json.dumps(self._spec))
        self.vocab_size = self._plain.get_vocab_size(with_added_tokens=True)
        self.named_tokens = {f"{role}_token": t for role in _ROLES if (t := _token_text(config.get(f"{role}_token")))}
        self.chat_template = _chat_template(self.folder, config)
        added = [(entry["content"], entry["id"], entry["special"]) for entry in spec.get("added_tokens", [])]
        self.special_tokens = {text: i for text, i, special in added if special}
        source = self.chat_template or ""
        self.control_tokens = {text: i for text, i, special in added if special or text in source}
        self.bos_id, self.eos_id, self.pad_id = (self._id_of(role) for role in ("bos", "eos", "pad"))
        self.stop_ids = frozenset(i for i in (*self._stops(generation), self.eos_id) if i is not None)
        with_bos = self._plain.encode("a", add_special_tokens=True).ids
        self.adds_bos = self.bos_id is not None and with_bos[:1] == [self.bos_id]

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """The tokenizer of a Hugging Face folder. Raises BaseModelError when a file is missing or unreadable."""
        folder = Path(folder)
        spec = read_json(folder / "tokenizer.json")
        config: dict[str, Any] = {}
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            if (folder / name).is_file():
                config |= {key: value for key, value in read_json(folder / name).items() if value is not None}
        generation_file = folder / "generation_config.json"
        generation = read_json(generation_file) if generation_file.is_file() else {}
        try:
            return cls(folder, spec, config, generation)
        except Exception as error:  # tokenizers raises bare Exception for a spec that it cannot build
            if isinstance(error, BaseModelError):
                raise
            raise BaseModelError(
                f"{folder / 'tokenizer.json'}: not a usable tokenizer ({error})", hint="download the file again"
            ) from None

    @cached_property
    def file_digests(self) -> dict[str, str]:
        """sha256 by name of the files that decide what text becomes which ids."""
        names = [name for name in _DIGEST_FILES if (self.folder / name).is_file()]
        return {name: digest_file(self.folder / name) for name in names}

    @cached_property
    def digest(self) -> str:
        """sha256 over the names and digests of these files."""
        return digest_json(self.file_digests)

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Word -> id, added tokens included: two models with equal ones speak of the same words."""
        return self._plain.get_vocab(with_added_tokens=True)

    def encode(self, text: str, specials: bool = True) -> list[int]:
        """Ids of `text`; adds no BOS or EOS. specials=False reads control tokens in `text` as plain characters."""
        return self._encoder(specials).encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, in parallel inside the tokenizers library."""
        return [encoding.ids for encoding in self._plain.encode_batch(list(texts), add_special_tokens=False)]

    def encode_offsets(self, text: str, specials: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
        """(ids, [(start, end) in characters of `text`]) ; adds no BOS or EOS."""
        encoding = self._encoder(specials).encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def encode_spans(
        self, text: str, literal_spans: Sequence[tuple[int, int]]
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """`encode_offsets`, but control tokens inside one of `literal_spans` (sorted, in characters) are text."""
        if not literal_spans:
            return self.encode_offsets(text)
        if GUARD_OPEN in text or GUARD_CLOSE in text:
            raise TemplateError(
                "the text holds a private-use character (U+F5350, U+F5351) together with a control token",
                hint="remove the row: this looks like an attempt to forge control tokens",
            )
        starts = [start for start, _ in literal_spans]
        pieces, real_starts, cursor = [], [], 0
        for match in self._control_pattern.finditer(text):
            near = bisect.bisect_right(starts, match.start()) - 1
            if near >= 0 and match.end() <= literal_spans[near][1]:
                continue
            pieces += [text[cursor : match.start()], GUARD_OPEN, match.group(), GUARD_CLOSE]
            real_starts.append(match.start() + 2 * len(real_starts))
            cursor = match.end()
        encoding = self._twin.encode("".join([*pieces, text[cursor:]]), add_special_tokens=False)
        ids = [self._real_ids.get(i, i) for i in encoding.ids]
        return ids, [(_unguarded(a, real_starts), _unguarded(b, real_starts)) for a, b in encoding.offsets]

    def decode(self, ids: Sequence[int], skip_specials: bool = False) -> str:
        """Text of `ids`; control tokens are spelt out unless skip_specials."""
        return self._plain.decode(list(ids), skip_special_tokens=skip_specials)

    def token_text(self, token_id: int) -> str:
        """The vocabulary entry of one id ('Ġthe', '<|im_end|>'), '' for an id that is not in the vocabulary."""
        return self._plain.id_to_token(token_id) or ""

    def _stops(self, generation: dict[str, Any]) -> list[int]:
        """generation_config's eos_token_id: an id, or a list of them. Raises BaseModelError for what is no token."""
        given = generation.get("eos_token_id")
        stops = [stop for stop in (given if isinstance(given, list) else [given]) if stop is not None]
        for stop in stops:
            if type(stop) is not int or not 0 <= stop < 2**32 or self._plain.id_to_token(stop) is None:
                raise BaseModelError(
                    f"{self.folder / 'generation_config.json'}: eos_token_id {stop!r} is no token of tokenizer.json",
                    hint="download both files again, or give the number of the token that ends an answer",
                )
        return stops

    def _id_of(self, role: str) -> int | None:
        text = self.named_tokens.get(f"{role}_token")
        return None if text is None else self._plain.token_to_id(text)

    def _encoder(self, specials: bool) -> tokenizers.Tokenizer:
        return self._plain if specials or not self.control_tokens else self._twin

    @cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        # Longest first: the same choice as tokenizers' leftmost-longest search.
        return re.compile("|".join(re.escape(t) for t in sorted(self.control_tokens, key=len, reverse=True)))

    @cached_property
    def _twin(self) -> tokenizers.Tokenizer:
        guarded = [
            entry | {"content": GUARD_OPEN + text + GUARD_CLOSE}
            if (text := entry["content"]) in self.control_tokens
            else entry
            for entry in self._spec["added_tokens"]
        ]
        # The post-processor names control tokens by their plain text; nothing here is encoded with it.
        return tokenizers.Tokenizer.from_str(json.dumps(self._spec | {"added_tokens": guarded, "post_processor": None}))

    @cached_property
    def _real_ids(self) -> dict[int, int]:
        """Id in the twin -> real id, of every control token."""
        twins = {self._twin.token_to_id(GUARD_OPEN + text + GUARD_CLOSE): i for text, i in self.control_tokens.items()}
        return {twin: i for twin, i in twins.items() if twin is not None}


def _unguarded(position: int, real_starts: list[int]) -> int:
    """Position in the guarded text -> position in the text. `real_starts`: guarded positions of the opening guards."""
    return position - 2 * bisect.bisect_left(real_starts, position)


def _token_text(value: Any) -> str:
    """tokenizer_config names a token as text, or as {"content": text, ...}."""
    return value.get("content", "") if isinstance(value, dict) else value if isinstance(value, str) else ""


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """chat_template.jinja, or tokenizer_config's `chat_template` (text, or a list of named ones: "default")."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise BaseModelError(f"{path}: not UTF-8 (byte {error.start})", hint="download the file again") from None
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None

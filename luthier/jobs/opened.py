"""A base as the verbs open it: resolved, changed as section `model` says, its tokenizer and template read. No weights
are loaded, and torch is not."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.bases.derived import derive_base
from luthier.bases.resolve import Base, resolve_base
from luthier.bases.tokenizer import Tokenizer
from luthier.chat.codec import ChatCodec
from luthier.config.load import Project


@dataclass(frozen=True)
class OpenBase:
    """A base on this disk with its tokenizer and chat codec; no weights loaded yet."""

    base: Base
    tokenizer: Tokenizer
    codec: ChatCodec


def open_base(project: Project) -> OpenBase:
    """Resolves `model.base` (a relative folder starts at the project file), makes of it what section `model` says and
    opens its tokenizer."""
    model = project.spec.model
    beside = project.folder / model.base
    found = resolve_base(str(beside) if beside.is_dir() else model.base, allow_hub=model.allow_hub)
    return open_folder(derive_base(found, model))


def open_folder(base: Base) -> OpenBase:
    """Tokenizer and codec of a resolved base."""
    tokenizer = Tokenizer.load(base.folder)
    return OpenBase(base, tokenizer, ChatCodec(tokenizer))

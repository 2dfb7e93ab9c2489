"""What one family of chat templates looks like: enough to build its tokenizer in a test, and to name it to a user."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """One template family.

    template: Jinja text of the usual form, written for this project. control: control tokens it is made of, in
    the order of their ids in tests. stop: the text of the token that ends an answer. has_system: a system message
    is accepted. signature: texts whose presence in a template tells the family. note: what is special, for people.
    """

    name: str
    template: str
    control: tuple[str, ...]
    stop: str
    bos: str | None
    has_system: bool
    signature: tuple[str, ...]
    note: str

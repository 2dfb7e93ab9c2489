"""All families, and which one a template belongs to. Adding a family = one file and one line here."""

from __future__ import annotations

from luthier.chat.families.chatml import CHATML, SMOLLM2
from luthier.chat.families.family import Family
from luthier.chat.families.gemma import GEMMA
from luthier.chat.families.llama2 import LLAMA2
from luthier.chat.families.llama3 import LLAMA3
from luthier.chat.families.mistral import MISTRAL
from luthier.chat.families.phi3 import PHI3
from luthier.chat.families.plain import PLAIN
from luthier.chat.families.zephyr import ZEPHYR

FAMILIES: dict[str, Family] = {
    family.name: family for family in (CHATML, SMOLLM2, LLAMA3, LLAMA2, MISTRAL, PHI3, GEMMA, ZEPHYR, PLAIN)
}


def family_of(template: str | None) -> str:
    """Name of the family a template belongs to by the control texts in it: "plain" for None, "other" when unknown."""
    if template is None:
        return PLAIN.name
    known = (f.name for f in FAMILIES.values() if f.signature and all(text in template for text in f.signature))
    return next(known, "other")

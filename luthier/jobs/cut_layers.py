"""`luthier cut-layers BASE OUT`: a shallower base, as a student of distillation."""

from __future__ import annotations

from pathlib import Path

from luthier.bases.cut_layers import cut_layers as cut
from luthier.bases.resolve import resolve_base
from luthier.errors import ConfigError
from luthier.jobs import console
from luthier.store.publish import publishing


def cut_layers(base: str, out: Path, *, keep: int) -> None:
    """The verb. Raises ConfigError where `out` stands already, BaseModelError as `resolve_base` and `cut` do."""
    if out.exists():
        raise ConfigError(f"{out}: stands already", hint="give another folder, or delete this one")
    source = resolve_base(base)
    facts: dict = {}
    inputs = {"base": source.digest, "name": source.name, "keep": keep}
    with publishing(out, kind="base", inputs=inputs, facts=facts) as folder:
        facts.update(cut(source.folder, folder, keep))
    layers = ", ".join(map(str, facts["layers"]))
    console.line(f"{out}: {keep} layers of {source.name} ({layers}), {facts['num_parameters']:,} parameters")
    console.line("no model yet: train it (loss.kind: distill, with what it was cut from as teacher) before it is asked")

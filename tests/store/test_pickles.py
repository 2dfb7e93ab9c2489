"""The pickle scanner: what a file would import is told without loading it; crafted evasions are seen through."""

import collections
import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch

from luthier.store.pickles import HIDDEN, scan_file, scan_folder


class Runs:
    """Pickles to a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


EVIL = Runs(os.system, "touch /tmp/never")


def archive(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return stream.getvalue()


def stack_global(*pushes: bytes) -> bytes:
    return b"\x80\x04" + b"".join(pushes) + b"\x93\x8c\x02idR."


def text(word: str) -> bytes:
    return b"\x8c" + bytes([len(word)]) + word.encode()


SYSTEM = f"{os.system.__module__}.system"  # posix.system
CRAFTED = {
    **{f"protocol {n}": (pickle.dumps(EVIL, protocol=n), SYSTEM) for n in range(6)},
    "nested in data": (pickle.dumps({"w": [1, {"x": (EVIL,)}]}), SYSTEM),
    "a pickle in a pickle": (pickle.dumps(Runs(pickle.loads, pickle.dumps(EVIL))), "_pickle.loads"),
    "torch zip": (archive({"archive/data.pkl": pickle.dumps(EVIL), "archive/version": b"3"}), SYSTEM),
    "zip member with another name": (archive({"archive/data/0": pickle.dumps(EVIL, protocol=2)}), SYSTEM),
    "zip in zip": (archive({"inner.pt": archive({"a/data.pkl": pickle.dumps(EVIL)})}), SYSTEM),
    "zip behind a pickle": (pickle.dumps({}) + archive({"data.pkl": pickle.dumps(EVIL)}), SYSTEM),
    "second pickle": (pickle.dumps({"a": 1}) + pickle.dumps(EVIL), SYSTEM),
    "runs, then breaks off": (pickle.dumps(EVIL)[:-1] + b"\xff\xff\xff", SYSTEM),
    "INST": (b"(S'touch'\nios\nsystem\n.", "os.system"),
    "OBJ": (b"(cos\nsystem\nS'touch'\no.", "os.system"),
    "STACK_GLOBAL from the memo": (
        stack_global(text("system"), b"\x94", text("os"), b"\x94", b"00", b"h\x01", b"h\x00"),
        "os.system",
    ),
    "STACK_GLOBAL from a numbered memo": (
        stack_global(text("os"), b"q\x07", b"0", text("x"), b"0h\x07", text("popen")),
        "os.popen",
    ),
    "STACK_GLOBAL with a duplicate": (stack_global(text("os"), b"20", text("execv")), "os.execv"),
    "names put together at run time": (
        stack_global(text("builtins"), text("getattr"), b"\x93(", text("o"), text("s"), b"tR", text("y")),
        HIDDEN,
    ),
    "extension registry": (b"\x80\x02\x82\x01.", "copyreg.extension 1"),
    "a harmless name in a harmful module": (b"ctorch.hub\nload\n(tR.", "torch.hub.load"),
    "dotted name": (stack_global(text("torch"), text("serialization.os.system")), "torch.serialization.os.system"),
    "eval": (b"cbuiltins\neval\n(S'1'\ntR.", "builtins.eval"),
}  # fmt: skip


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_pickles_are_seen_through_and_nothing_runs(tmp_path, name):
    data, expected = CRAFTED[name]
    path = tmp_path / "model.bin"
    path.write_bytes(data)
    scan = scan_file(path)
    assert expected in scan.dangerous, scan
    assert expected in scan.why and not os.path.exists("/tmp/never")


@pytest.mark.parametrize("legacy", [False, True])
def test_plain_tensors_are_harmless(tmp_path, legacy):
    state = collections.OrderedDict(
        a=torch.randn(300), b=torch.zeros(2, dtype=torch.bfloat16), c=torch.nn.Parameter(torch.ones(3)), d=3, e="text"
    )
    path = tmp_path / "pytorch_model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    scan = scan_file(path)
    assert scan.why == "" and "torch._utils._rebuild_tensor_v2" in scan.imports
    torch.save(state | {"x": EVIL}, path, _use_new_zipfile_serialization=not legacy)
    assert scan_file(path).dangerous == [SYSTEM]


def test_raw_bytes_behind_an_old_torch_file_are_no_pickles(tmp_path):
    path = tmp_path / "w.bin"
    spelt = np.frombuffer(b"cos\nsystem\n.".ljust(64, b"."), dtype=np.float32)
    torch.save({"w": torch.from_numpy(spelt.copy())}, path, _use_new_zipfile_serialization=False)
    assert scan_file(path).why == ""


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x80\x04", "not a whole pickle"),
        (b"PK\x03\x04 torn", "a torn zip"),
        (archive({"a/data.pkl": pickle.dumps(EVIL)})[:-60], "a torn zip"),
        (b"\x80\x02" + b"\x8b" + struct.pack("<i", -5) + b".", "not a whole pickle"),
        (archive({"a": archive({"b": archive({"c": archive({"d": archive({"e": b"x"})})})})}), "nested too deeply"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, data, why):
    path = tmp_path / "x.pt"
    path.write_bytes(data)
    assert why in scan_file(path).why


def test_only_what_could_be_a_pickle_is_looked_at(tmp_path):
    (tmp_path / "vocab.bin").write_bytes(b"not a pickle at all")
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "innocent.json").write_bytes(pickle.dumps(EVIL))
    (tmp_path / "empty.pt").write_bytes(b"")
    found = {path.name: scan.why for path, scan in scan_folder(tmp_path).items()}
    assert found.keys() == {"vocab.bin", "innocent.json", "empty.pt"} and SYSTEM in found["innocent.json"]
    assert found["vocab.bin"] == found["empty.pt"] == ""

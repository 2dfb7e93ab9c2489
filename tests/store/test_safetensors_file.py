"""Headers of safetensors files: real ones pass; ambiguous, overlapping, torn and oversized ones are refused."""

import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from luthier.store import safetensors_file
from luthier.store.safetensors_file import header_problem

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def write(path, header, data=b"\0" * 8, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def test_real_files_pass(tmp_path):
    dtypes = (torch.float32, torch.bfloat16, torch.int8, torch.bool, torch.float8_e4m3fn, torch.int64)
    tensors = {str(dtype): torch.zeros(3, 2).to(dtype) for dtype in dtypes}
    save_file(tensors | {"scalar": torch.tensor(1.0), "none": torch.zeros(0, 4)}, tmp_path / "a", {"format": "pt"})
    save_file({}, tmp_path / "b")
    assert header_problem(tmp_path / "a") == header_problem(tmp_path / "b") == ""
    assert header_problem(write(tmp_path / "c", {"w": ENTRY, "__metadata__": {"a": "b"}})) == ""


BROKEN = {
    "empty": (b"", b"", 0, "torn or no"),
    "length beyond the file": ({"w": ENTRY}, b"\0" * 8, 1 << 40, "torn or no"),
    "length of all ones": ({"w": ENTRY}, b"\0" * 8, (1 << 64) - 1, "torn or no"),
    "no JSON": (b"{nonsense}", b"", None, "torn or no"),
    "no UTF-8": (b'{"\xff":1}', b"", None, "torn or no"),
    "no object": ([1], b"", None, "no JSON object"),
    "deep": (b"[" * 200_000, b"", None, "torn or no"),
    "key twice": (b'{"w":%s,"w":%s}' % ((json.dumps(ENTRY).encode(),) * 2), b"\0" * 8, None, "stands twice"),
    "inner key twice": (
        b'{"w":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}', b"\0" * 8, None, "'dtype' stands",
    ),
    "NaN": (b'{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', b"\0" * 8, None, "no number"),
    "overlap": ({"a": ENTRY, "b": ENTRY}, b"\0" * 8, None, "starts at byte 0, the one before it ends at 8"),
    "hole": ({"a": ENTRY, "b": ENTRY | {"data_offsets": [16, 24]}}, b"\0" * 24, None, "starts at byte 16"),
    "offset out of file": ({"a": ENTRY | {"shape": [4], "data_offsets": [0, 16]}}, b"\0" * 8, None, "take 16 bytes"),
    "bytes left over": ({"a": ENTRY}, b"\0" * 12, None, "the file holds 12"),
    "backwards": ({"a": ENTRY | {"data_offsets": [8, 0]}}, b"\0" * 8, None, "-8 bytes for shape"),
    "negative": ({"a": ENTRY | {"data_offsets": [-8, 0]}}, b"\0" * 8, None, "not whole numbers"),
    "shape and size": ({"a": ENTRY | {"shape": [3]}}, b"\0" * 8, None, "8 bytes for shape [3] of F32"),
    "overflow": ({"a": ENTRY | {"shape": [1 << 40, 1 << 40]}}, b"\0" * 8, None, "no memory"),
    "zero times overflow": ({"a": ENTRY | {"shape": [1 << 62, 0], "data_offsets": [0, 0]}}, b"", None, "no memory"),
    "truth for a number": ({"a": ENTRY | {"shape": [True, 2]}}, b"\0" * 8, None, "not whole numbers"),
    "unknown dtype": ({"a": ENTRY | {"dtype": "Q4"}}, b"\0" * 8, None, "unknown dtype"),
    "extra field": ({"a": ENTRY | {"code": "x"}}, b"\0" * 8, None, "not dtype, shape and data_offsets"),
    "metadata": ({"a": ENTRY, "__metadata__": {"a": 1}}, b"\0" * 8, None, "__metadata__"),
    "empty tensor out of place": (
        {"a": ENTRY, "z": {"dtype": "F32", "shape": [0], "data_offsets": [4, 4]}}, b"\0" * 8, None, "starts at byte 4",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_headers_are_refused(tmp_path, name):
    header, data, length, reason = BROKEN[name]
    assert reason in header_problem(write(tmp_path / "w.safetensors", header, data, length))


def test_limits(tmp_path, monkeypatch):
    path = write(tmp_path / "w", {"w": ENTRY})
    monkeypatch.setattr(safetensors_file, "MAX_HEADER_BYTES", 20)
    assert "more than 20" in header_problem(path)
    monkeypatch.undo()
    monkeypatch.setattr(safetensors_file, "MAX_TENSORS", 0)
    assert "1 tensors, more than 0" in header_problem(path)

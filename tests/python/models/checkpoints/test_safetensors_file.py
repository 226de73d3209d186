"""Safetensors files, whole and damaged; safetensors itself is the oracle of whole ones."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import safetensors
import safetensors.numpy

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

from huggingface_files import encode
from kvctl.models.checkpoints.safetensors_file import SafetensorsFile
from kvctl.models.checkpoints.safetensors_writer import write_safetensors

A, B = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(4, dtype=np.float16)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(encode({"a": A, "b": B}))
    return path


def header(*, metadata=None, **changes):
    """Return a header of two tensors with changes to the second."""
    entries = {
        "__metadata__": metadata,
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "F16", "shape": [4], "data_offsets": [24, 32], **changes},
    }
    return json.dumps(entries)


def test_what_safetensors_reads(path):
    file = SafetensorsFile(path)
    assert file.names == ["a", "b"] and "a" in file and "c" not in file
    for name, array in safetensors.numpy.load_file(path).items():
        np.testing.assert_array_equal(file.tensor(name), array.astype(np.float32))
        assert file.shape(name) == array.shape
    assert (file.dtype("a"), file.dtype("b")) == ("F32", "F16")


def test_what_safetensors_writes(tmp_path):
    tensors = {"x": A, "empty": np.zeros((0, 3), np.float32), "one": np.array(3, np.float32)}
    safetensors.numpy.save_file(tensors, tmp_path / "m.safetensors", {"format": "pt"})
    file = SafetensorsFile(tmp_path / "m.safetensors")
    for name, array in tensors.items():
        np.testing.assert_array_equal(file.tensor(name), array)


def test_what_is_written(tmp_path):
    path, tensors = tmp_path / "m.safetensors", {"a": A, "b": B}
    write_safetensors(path, tensors, metadata={"record": '{"é": 1}'})
    assert SafetensorsFile(path).metadata == {"record": '{"é": 1}'}
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata() == {"record": '{"é": 1}'}
        for name, array in tensors.items():
            np.testing.assert_array_equal(file.get_tensor(name), array)
    whole = path.read_bytes()
    with pytest.raises(ValueError, match="tensor 'c' is complex128, which is not written"):
        write_safetensors(path, {"c": np.zeros(2, complex)})
    assert path.read_bytes() == whole and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("metadata", [[], "text", 1, {"a": 1}, {"a": None}])
def test_metadata_that_is_no_text(path, metadata):
    path.write_bytes(encode({"a": A, "b": B}, header=header(metadata=metadata)))
    file = SafetensorsFile(path)
    np.testing.assert_array_equal(file.tensor("a"), A)
    with pytest.raises(ValueError, match="its __metadata__ must hold texts by name"):
        _ = file.metadata


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_offsets": [16, 24]}, "tensors 'a' and 'b' overlap"),
        ({"data_offsets": [0, 8]}, "overlap"),
        ({"data_offsets": [32, 40]}, "bytes 24 to 32 belong to no tensor"),
        ({"data_offsets": [24, 30]}, r"'b', F16 \(4,\), cannot lie at bytes 24 to 30"),
        ({"data_offsets": [32, 24]}, "cannot lie at bytes 32 to 24"),
        ({"data_offsets": [-8, 0]}, r"at bytes \[-8, 0\]"),
        ({"data_offsets": [24]}, r"at bytes \[24\]"),
        ({"data_offsets": [24.0, 32.0]}, "at bytes"),
        ({"data_offsets": None}, "at bytes None"),
        ({"shape": [5]}, "cannot lie at"),
        ({"shape": [-4]}, r"has the shape \[-4\]"),
        ({"shape": [1 << 62, 1 << 62]}, "cannot lie at"),
        ({"shape": [True, 4]}, "has the shape"),
        ({"shape": "4"}, "has the shape '4'"),
        ({"dtype": 7}, "has the dtype 7"),
        ({"dtype": "F32"}, "cannot lie at"),
        ({"more": 1}, "does not describe tensor 'b'"),
    ],
)
def test_headers_that_contradict_themselves(path, changes, message):
    path.write_bytes(encode({"a": A, "b": B}, header=header(**changes)))
    with pytest.raises(ValueError, match=rf"m\.safetensors is damaged or truncated: .*{message}"):
        SafetensorsFile(path)


def test_keys_that_appear_twice(path):
    text = header()[:-1] + ', "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}'
    path.write_bytes(encode({"a": A, "b": B}, header=text))
    with pytest.raises(ValueError, match="the key 'a' appears twice"):
        SafetensorsFile(path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1}', '{"a":' * 100_000, "\x00", '"a"'])
def test_headers_that_are_none(path, text):
    path.write_bytes(encode({"a": A, "b": B}, header=text))
    with pytest.raises(ValueError, match=r"m\.safetensors is damaged or truncated"):
        SafetensorsFile(path)


@pytest.mark.parametrize("size", [1 << 63, 1 << 40, 100_000_001, 10_000])
def test_headers_longer_than_the_file(path, size):
    path.write_bytes(size.to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(ValueError, match=f"a header of {size} bytes in a file of"):
        SafetensorsFile(path)


def test_every_truncation_and_every_addition(path):
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="is damaged or truncated"):
            SafetensorsFile(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match="its tensors end at byte 32 of 33"):
        SafetensorsFile(path)


def test_regular_files_only(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(ValueError, match=r"pipe\.safetensors is not a regular file"):
        SafetensorsFile(tmp_path / "pipe.safetensors")
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=r"zero\.safetensors is not a regular file"):
        SafetensorsFile(tmp_path / "zero.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.safetensors"):
        SafetensorsFile(tmp_path / "none.safetensors")


def test_a_link_to_a_file_is_followed(path, tmp_path):
    (tmp_path / "link.safetensors").symlink_to(path)
    np.testing.assert_array_equal(SafetensorsFile(tmp_path / "link.safetensors").tensor("a"), A)

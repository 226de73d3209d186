"""GGUF files, whole and damaged. The whole ones are written by the gguf package."""

from __future__ import annotations

import os
import struct

import numpy as np
import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

import gguf

from kvctl.models.checkpoints.gguf.file import GGUFFile

RNG = np.random.default_rng(3)
PLAIN = RNG.standard_normal((6, 64), dtype=np.float32)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_uint32("some.number", 77)
    writer.add_array("some.strings", ["a", "bc", "é"])
    writer.add_array("some.floats", [0.5, 1.5])
    writer.add_bool("some.flag", True)
    writer.add_tensor("plain", PLAIN)
    writer.add_tensor("half", PLAIN.astype(np.float16))
    for kind in ("Q4_1", "Q8_0"):
        raw_type = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(kind, gguf.quants.quantize(PLAIN, raw_type), raw_dtype=raw_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_metadata(path):
    metadata = GGUFFile(path).metadata
    assert metadata["general.architecture"] == "llama"
    assert metadata["some.number"] == 77
    assert metadata["some.strings"] == ["a", "bc", "é"]
    assert metadata["some.floats"] == [0.5, 1.5]
    assert metadata["some.flag"] is True


def test_tensors_are_what_the_gguf_package_dequantises(path):
    file = GGUFFile(path)
    np.testing.assert_array_equal(file.tensor("plain"), PLAIN)
    np.testing.assert_array_equal(file.tensor("half"), PLAIN.astype(np.float16).astype(np.float32))
    by_name = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for kind in ("Q4_1", "Q8_0"):
        theirs = by_name[kind]
        ours = file.tensor(kind)
        np.testing.assert_array_equal(
            ours, gguf.quants.dequantize(theirs.data, theirs.tensor_type).reshape(PLAIN.shape)
        )
        assert ours.dtype == np.float32


def test_a_missing_tensor(path):
    assert "other" not in GGUFFile(path)
    with pytest.raises(ValueError, match="no tensor 'other'"):
        GGUFFile(path).tensor("other")


def test_every_truncation_is_refused(path):
    whole = path.read_bytes()  # ends with up to 31 bytes of padding
    for size in [0, 3, 4, 23, 24, 25, *range(30, len(whole) - 32, 37), len(whole) - 32]:
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"truncated|no GGUF file"):
            GGUFFile(path)


def test_no_flipped_byte_in_the_header_escapes_as_another_error(path):
    whole = path.read_bytes()
    header = whole.index(b"Q8_0") + 40
    accepted = 0
    for at in range(header):
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        path.write_bytes(damaged)
        try:
            GGUFFile(path)
            accepted += 1
        except ValueError as error:
            assert str(path) in str(error)
    assert 0 < accepted < header  # a byte of a name or a number may be anything


@pytest.mark.parametrize(("at", "what"), [(8, "tensors"), (16, "metadata pairs")])
def test_huge_counts_are_refused_at_once(path, at, what):
    damaged = bytearray(path.read_bytes())
    damaged[at : at + 8] = struct.pack("<Q", 1 << 60)
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=f"announces .* {what}"):
        GGUFFile(path)


def test_another_version(path):
    damaged = bytearray(path.read_bytes())
    damaged[4:8] = struct.pack("<I", 9)
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="version 9"):
        GGUFFile(path)


def damage(path, change):
    """Write the file again with a change to its tensors' (name, offset)."""
    data = bytearray(path.read_bytes())
    infos = {}
    for name in ("plain", "half", "Q4_1", "Q8_0"):
        at = data.index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name) + 4 + 16 + 4
        infos[name] = (at, *struct.unpack_from("<Q", data, at))
    change(data, infos)
    path.write_bytes(data)


def test_offsets_that_are_not_aligned(path):
    damage(path, lambda data, infos: struct.pack_into("<Q", data, infos["half"][0], 33))
    with pytest.raises(ValueError, match="tensor 'half' lies at 33, not at a multiple of the alig"):
        GGUFFile(path)


def test_tensors_that_overlap(path):
    def overlap(data, infos):
        struct.pack_into("<Q", data, infos["half"][0], infos["plain"][1])

    damage(path, overlap)
    with pytest.raises(ValueError, match=r"tensors '(plain|half)' and '(plain|half)' overlap"):
        GGUFFile(path)


def test_offsets_beyond_the_file(path):
    damage(path, lambda data, infos: struct.pack_into("<Q", data, infos["half"][0], 1 << 62))
    with pytest.raises(ValueError, match="is truncated: tensor 'half' ends at byte"):
        GGUFFile(path)


def test_keys_that_appear_twice(path):
    data = path.read_bytes()
    assert data.count(b"some.number") == 1
    path.write_bytes(data.replace(b"some.number", b"some.floats"))
    with pytest.raises(ValueError, match=r"its metadata has 'some\.floats' twice"):
        GGUFFile(path)


def test_types_that_cannot_be_read(path):
    file = GGUFFile(path)
    file.check_types(["plain", "half", "Q4_1", "Q8_0"])

    def to_int8(data, infos):
        struct.pack_into("<I", data, infos["half"][0] - 4, int(gguf.GGMLQuantizationType.I8))

    damage(path, to_int8)
    with pytest.raises(ValueError, match="tensor 'half' is I8, which kvctl cannot read"):
        GGUFFile(path).check_types(["plain", "half"])


@pytest.mark.parametrize("size", [1 << 16, 1 << 40])
def test_keys_longer_than_any(path, size):
    data = bytearray(path.read_bytes())
    data[24:32] = struct.pack("<Q", size)
    path.write_bytes(data + bytes(1 << 17))
    with pytest.raises(ValueError, match=f"a text of {size} bytes"):
        GGUFFile(path)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(ValueError, match="is not a regular file"):
        GGUFFile(tmp_path / "pipe.gguf")

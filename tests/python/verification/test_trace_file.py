"""A trace's file: whatever it holds, it is read right or refused with a ValueError."""

import io
import os
import zipfile

import numpy as np
import pytest

import kvctl
from kvctl.verification import Trace

PROBS = np.full((3, 4), 0.25, np.float32)


@pytest.fixture
def path(tmp_path):
    trace = Trace()
    tree = kvctl.TokenTree([0, 1, 2], [-1, 0, 0])
    trace.add(tree, target_probs=PROBS, draft_probs=PROBS, drawn="independent")
    trace.save(tmp_path / "trace.npz")
    return tmp_path / "trace.npz"


def test_truncations(path):
    whole = path.read_bytes()
    for size in range(0, len(whole), 11):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="is not a trace, or damaged"):
            Trace.load(path)


def test_flipped_bits(path):
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        changed = bytearray(whole)
        changed[rng.integers(len(changed))] ^= 1 << rng.integers(8)
        path.write_bytes(changed)
        try:
            Trace.load(path)
        except ValueError:
            refused += 1
    assert refused > 200


@pytest.mark.parametrize("name", ["nodes", "ptrs", "drawn_names", "target", "draft"])
def test_other_arrays(path, name):
    arrays = dict(np.load(path))
    others = [np.array(5), np.zeros(0), np.zeros((2, 2)), np.array([[2**40]]), np.array(["x"])]
    others += [np.array([[[1]]]), np.array([0j]), arrays[name][:0]]
    if name != "drawn_names":
        others.append(arrays[name][..., :-1])
    if arrays[name].dtype.kind == "i":
        others += [arrays[name] - 7, arrays[name] + 99, arrays[name].astype(float)]
    for other in others:
        np.savez(path, **{**arrays, name: other})
        with pytest.raises(ValueError):
            Trace.load(path)


def test_objects_are_not_unpickled(path):
    np.savez(path, **{**np.load(path), "target": np.array([[print]], object)})
    with pytest.raises(ValueError, match="target is not what a trace holds"):
        Trace.load(path)


def test_a_header_that_lies_is_not_believed(path):
    """Four tebibytes are announced and none follow: nothing is allocated for them."""
    arrays = dict(np.load(path))
    header = io.BytesIO()
    description = {"descr": "<f4", "fortran_order": False, "shape": (2**38, 4)}
    np.lib.format.write_array_header_1_0(header, description)
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            data = io.BytesIO()
            np.save(data, array)
            archive.writestr(f"{name}.npy", (header if name == "target" else data).getvalue())
    with pytest.raises(ValueError, match="target is not what a trace holds"):
        Trace.load(path)


def test_no_archive_at_all(path, tmp_path):
    np.save(tmp_path / "array.npy", PROBS)
    with pytest.raises(ValueError, match="is not a trace"):
        Trace.load(tmp_path / "array.npy")
    with pytest.raises(FileNotFoundError):
        Trace.load(tmp_path / "nothing")
    Trace().save(path)
    assert len(Trace.load(path)) == 0


def test_a_file_that_would_take_too_much_memory_is_not_unpacked(path):
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    with pytest.raises(ValueError, match=rf"takes {size} bytes .* max_bytes, which is {size - 1};"):
        Trace.load(path, max_bytes=size - 1)
    assert len(Trace.load(path, max_bytes=size)) > 0


def test_regular_files_only(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for name in ("pipe", "endless"):
        with pytest.raises(ValueError, match=f"{name} is not a regular file"):
            Trace.load(tmp_path / name)


def test_a_member_that_is_empty(path):
    arrays = dict(np.load(path))
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            data = io.BytesIO()
            np.lib.format.write_array(data, array)
            archive.writestr(f"{name}.npy", b"" if name == "target" else data.getvalue())
    with pytest.raises(ValueError, match=rf"{path} is damaged: target is no array"):
        Trace.load(path)

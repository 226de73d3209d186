"""Sequences that are saved and loaded: the same attention bit for bit, or a clear ValueError.

One file, since each lie is told in the same saved file.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import tvm_ffi

import kvctl
from kvctl import PagedKVCache
from kvctl.cache.paged_kv_cache import Rope
from small_cache import kv, make_cache, step


def saved(path: Path, *, evicted: bool = True, windowed: bool = False, **changes: Any) -> Any:
    """Return a cache with sequence 0, which has been saved as it is."""
    cache = make_cache(**({"rope": Rope()} | changes))
    cache.add_sequence(0)
    if windowed:
        cache.enable_sliding_window(0, 7, sinks=2, horizon=5)
    step(cache, 0, range(30))
    if evicted:
        cache.evict(0, [*range(2), *range(20, 30)])
    cache.save_sequence(0, path)
    return cache


@pytest.mark.parametrize("page_size", [1, 4, 7, 16, 64])
@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("evicted", [False, True])
def test_another_cache_goes_on_bit_for_bit(
    tmp_path: Path, evicted: bool, windowed: bool, page_size: int
) -> None:
    cache = saved(tmp_path / "sequence", evicted=evicted, windowed=windowed)
    other = make_cache(rope=Rope(), page_size=page_size, max_total_tokens=128)
    other.debug_poison()
    other.load_sequence(3, tmp_path / "sequence")
    assert other.sequence_length(3) == cache.sequence_length(0)
    if evicted or not windowed:
        np.testing.assert_array_equal(kv(other, 3), kv(cache, 0))
    for _ in range(3):
        np.testing.assert_array_equal(step(other, 3, [40, 41]), step(cache, 0, [40, 41]))
    cache.popn(0, 4)
    other.popn(3, 4)
    np.testing.assert_array_equal(step(other, 3, [50]), step(cache, 0, [50]))
    other.remove_sequence(3)
    assert other.num_available_pages == other.num_pages


@pytest.mark.parametrize("page_size", [1, 4, 7, 16, 64])
def test_what_a_window_let_go_stays_gone(tmp_path: Path, page_size: int) -> None:
    saved(tmp_path / "sequence", evicted=False, windowed=True)  # tokens 4 to 15 are gone
    cache = make_cache(rope=Rope(), page_size=page_size)
    cache.load_sequence(0, tmp_path / "sequence")
    with pytest.raises(IndexError, match="evicted"):
        cache.get_kv(0, 15, 16)
    cache.get_kv(0, 16)
    cache.get_kv(0, 0, 4)
    cache.popn(0, 5)
    with pytest.raises(ValueError, match="evicted"):
        cache.popn(0, 5)
    cache.save_sequence(0, tmp_path / "again")
    other = make_cache(rope=Rope())
    other.load_sequence(0, tmp_path / "again")
    np.testing.assert_array_equal(step(other, 0, [60]), step(cache, 0, [60]))


@pytest.mark.parametrize(
    ("dtype", "inline"),
    [("float16", False), ("float16", True), ("bfloat16", False), ("int8", False)],
)
def test_every_type_of_element(tmp_path: Path, dtype: str, inline: bool) -> None:
    cache = saved(tmp_path / "sequence", dtype=dtype, rope=Rope(inline=inline))
    other = make_cache(rope=Rope(inline=inline), dtype=dtype, page_size=5)
    other.load_sequence(0, tmp_path / "sequence")
    np.testing.assert_array_equal(step(other, 0, [1, 2]), step(cache, 0, [1, 2]))


@pytest.mark.parametrize("through_tvm", [False, True])
def test_windows_that_renumber_their_sinks(tmp_path: Path, through_tvm: bool) -> None:
    cache = make_cache(rope=Rope())
    other = make_cache(rope=Rope(), page_size=8)
    cache.add_sequence(0)
    if through_tvm:
        name = "vm.builtin.attention_kv_cache_enable_sliding_window_for_seq"
        tvm_ffi.get_global_func(name)(cache, 0, 9, 2)
    else:
        cache.enable_sliding_window(0, 8, sinks=2, renumber_sinks=True)
    step(cache, 0, range(50))
    step(cache, 0, range(50, 100))
    cache.save_sequence(0, tmp_path / "sequence")
    other.load_sequence(1, tmp_path / "sequence")
    assert other.sequence_length(1) == cache.sequence_length(0) == (9 if through_tvm else 100)
    for _ in range(3):
        np.testing.assert_array_equal(step(other, 1, [7, 8]), step(cache, 0, [7, 8]))


def test_an_empty_sequence(tmp_path: Path) -> None:
    cache = make_cache()
    cache.add_sequence(0)
    cache.save_sequence(0, tmp_path / "sequence")
    cache.load_sequence(1, tmp_path / "sequence")
    assert cache.sequence_length(1) == 0
    np.testing.assert_array_equal(step(cache, 1, [4]), step(cache, 0, [4]))


IN_ANOTHER_PROCESS = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from kvctl.cache import Rope
from small_cache import make_cache, step
cache = make_cache(rope=Rope(), page_size=8)
cache.load_sequence(5, sys.argv[2])
np.save(sys.argv[3], step(cache, 5, [40, 41, 42]))
"""


def test_another_process_goes_on_bit_for_bit(tmp_path: Path) -> None:
    cache = saved(tmp_path / "sequence")
    support = str(Path(__file__).parents[1] / "support" / "cache")
    arguments = [support, str(tmp_path / "sequence"), str(tmp_path / "out.npy")]
    subprocess.run([sys.executable, "-c", IN_ANOTHER_PROCESS, *arguments], check=True)
    there = np.load(tmp_path / "out.npy")
    np.testing.assert_array_equal(there, step(cache, 0, [40, 41, 42]))


def test_a_safetensors_library_reads_it(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    cache = saved(tmp_path / "sequence.safetensors")
    tensors = safetensors.load_file(tmp_path / "sequence.safetensors")
    for part, name in zip(kv(cache, 0), "kv", strict=True):
        np.testing.assert_array_equal(tensors[name], part)
    np.testing.assert_array_equal(tensors["positions"], [0, 1, *range(20, 30)])


LAYOUTS = {
    "heads": ({"num_kv_heads": 1}, "num_kv_heads is 2 in the file and 1 in the cache"),
    "layers": ({"num_layers": 3}, "num_layers is 2 in the file and 3 in the cache"),
    "dim": ({"head_dim": 32}, "head_dim is 16 in the file and 32 in the cache"),
    "type": ({"dtype": "float16"}, "dtype is 'float32' in the file and 'float16' in the cache"),
    "rope": ({"rope": None}, "rope is 'normal' in the file and 'none' in the cache"),
    "inline": ({"rope": Rope(inline=True)}, "rope is 'normal' in the file and 'inline' in the"),
    "theta": ({"rope": Rope(theta=5e5)}, "rope_theta is 10000.* in the file and 500000.* in the"),
    "room": ({"max_total_tokens": 8}, "holds 12 tokens and the whole cache has room for 8"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_another_layout_is_refused(tmp_path: Path, name: str) -> None:
    changes, message = LAYOUTS[name]
    saved(tmp_path / "sequence")
    cache = make_cache(**({"rope": Rope()} | changes))
    with pytest.raises(ValueError, match=message):
        cache.load_sequence(0, tmp_path / "sequence")
    assert cache.empty and cache.num_available_pages == cache.num_pages


def test_misuse_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "sequence"
    cache = saved(path)
    with pytest.raises(ValueError, match="already has a sequence 0"):
        cache.load_sequence(0, path)
    with pytest.raises(KeyError, match="no sequence 9"):
        cache.save_sequence(9, path)
    with pytest.raises(FileNotFoundError):
        cache.load_sequence(1, tmp_path / "nothing")
    with pytest.raises(OSError, match=r"[Dd]irectory"):
        cache.save_sequence(0, tmp_path / "nowhere" / "sequence")
    for length in (64, 64, 12):
        step(cache, 0, range(length))
    free = cache.num_available_pages
    with pytest.raises(kvctl.OutOfPagesError, match="load_sequence needs 3 pages and 2 of"):
        cache.load_sequence(1, path)
    assert cache.sequence_ids == [0]
    assert cache.num_available_pages == free
    before = path.read_bytes()
    step(cache, 0, [1, 2], pending=True)
    with pytest.raises(ValueError, match="has 2 pending nodes; commit or abort them first"):
        cache.save_sequence(0, path)
    assert path.read_bytes() == before
    cache.begin_forward([0], [1], pending=True)
    with pytest.raises(RuntimeError, match="between begin_forward and end_forward"):
        cache.save_sequence(0, path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_damaged_file_is_refused(tmp_path: Path, dtype: str) -> None:
    """Flipped bits, cut and grown files: a ValueError, or the file says what it said before."""
    path = tmp_path / "sequence"
    original = saved(path, windowed=True, evicted=False, dtype=dtype)
    sound = path.read_bytes()
    cache = make_cache(rope=Rope(), page_size=8, dtype=dtype)
    rng = Random(3)
    (header_size,) = struct.unpack("<Q", sound[:8])
    refused = 0
    for trial in range(3000):
        data = bytearray(sound)
        kind = rng.random()
        if kind < 0.15:
            data = data[: rng.randrange(len(data))]
        elif kind < 0.2:
            data += rng.randbytes(rng.randint(1, 9))
        else:
            end = len(data) if kind < 0.5 else header_size + 8
            for _ in range(rng.choice([1, 1, 1, 2, 5])):
                data[rng.randrange(end)] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            cache.load_sequence(trial, path)
        except ValueError:
            refused += 1
            assert cache.empty
            assert cache.num_available_pages == cache.num_pages
            continue
        np.testing.assert_array_equal(
            np.from_dlpack(cache.get_kv(trial, 20)[0]), np.from_dlpack(original.get_kv(0, 20)[0])
        )
        cache.clear()
    assert refused > 2900


def _rewritten(path: Path, change: Any) -> None:
    """Write the file anew with other contents of its header, and a checksum that fits."""
    from kvctl.cache import sequence_file

    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    metadata = header["__metadata__"]
    numbers, layout = json.loads(metadata["numbers"]), json.loads(metadata["layout"])
    tensors = np.frombuffer(data[8 + size :], np.uint8)
    change(header, numbers, layout)
    metadata["numbers"], metadata["layout"] = json.dumps(numbers), json.dumps(layout)
    metadata["crc32"] = sequence_file.checksum(metadata, [tensors])
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + tensors.tobytes())


LIES: dict[str, Any] = {
    "longer": lambda header, numbers, layout: numbers.update(length=1 << 30, gone_end=1 << 30),
    "enormous": lambda header, numbers, layout: numbers.update(length=(1 << 31) - 1),
    "huge": lambda header, numbers, layout: numbers.update(length=1 << 80),
    "negative": lambda header, numbers, layout: numbers.update(sinks=-1),
    "float": lambda header, numbers, layout: numbers.update(horizon=1.5),
    "gone": lambda header, numbers, layout: numbers.update(gone_begin=1, gone_end=13),
    "visible": lambda header, numbers, layout: numbers.update(window_size=20),
    "next": lambda header, numbers, layout: numbers.update(next_position=7),
    "layers": lambda header, numbers, layout: layout.update(num_layers=1 << 40),
    "more": lambda header, numbers, layout: layout.update(more=1),
    "shape": lambda header, numbers, layout: header["k"].update(shape=[2, 1 << 50, 2, 16]),
    "offsets": lambda header, numbers, layout: header["v"].update(data_offsets=[0, 1 << 60]),
    "list": lambda header, numbers, layout: header.update(k=[]),
    "tensor": lambda header, numbers, layout: header.update(w=header["k"]),
    "positions": lambda header, numbers, layout: header.update(positions=header["k"]),
}


INT8_LIES: dict[str, Any] = {
    "no scale": lambda header, numbers, layout: header.pop("k_scale"),
    "another shape": lambda header, numbers, layout: header["k_scale"].update(shape=[2, 18, 2, 1]),
    "another type": lambda header, numbers, layout: header["v_scale"].update(dtype="I32"),
    "as float32": lambda header, numbers, layout: layout.update(dtype="float32"),
}


@pytest.mark.parametrize("name", INT8_LIES)
def test_an_int8_file_that_lies_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "sequence"
    saved(path, windowed=True, evicted=False, dtype="int8")
    cache = make_cache(rope=Rope(), dtype="int8")
    _rewritten(path, lambda header, numbers, layout: None)
    cache.load_sequence(0, path)
    cache.clear()
    _rewritten(path, INT8_LIES[name])
    with pytest.raises(ValueError):
        cache.load_sequence(0, path)
    assert cache.empty and cache.num_available_pages == cache.num_pages


@pytest.mark.parametrize("name", LIES)
def test_a_file_that_lies_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "sequence"
    saved(path, windowed=True, evicted=False)
    cache = make_cache(rope=Rope())
    _rewritten(path, lambda header, numbers, layout: None)
    cache.load_sequence(0, path)
    cache.clear()
    _rewritten(path, LIES[name])
    with pytest.raises(ValueError):
        cache.load_sequence(0, path)
    assert cache.empty and cache.num_available_pages == cache.num_pages


def test_positions_that_nobody_has_are_refused(tmp_path: Path) -> None:
    from kvctl.cache.sequence_file import SequenceFile, read_sequence_file

    path = tmp_path / "sequence"
    cache = saved(path)
    file = read_sequence_file(path, cache._kv_layout(), 1000)
    for wrong in (-1, 1 << 30):
        positions = np.array(file.positions)
        positions[3] = wrong
        SequenceFile(file.layout, file.numbers, positions, file.k, file.v).write(path)
        with pytest.raises(ValueError, match=r"a position is not in \[0, 2\^30\)"):
            cache.load_sequence(1, path)


@pytest.mark.parametrize("text", [b"", b"\x05", b"[" * 100_000, b"\xff" * 64, b"null", b"{}"])
def test_what_is_no_such_file_at_all(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "file"
    cache: PagedKVCache = make_cache()
    for data in (text, struct.pack("<Q", len(text)) + text):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="cannot be loaded as a sequence"):
            cache.load_sequence(0, path)


def test_only_files_are_replaced(tmp_path: Path) -> None:
    """What is renamed onto a device's name takes its place; onto a link's, that of the link."""
    cache = saved(tmp_path / "sequence")
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ValueError, match="is no file that could be replaced"):
            cache.save_sequence(0, other)
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for _ in range(2):  # dangling at first
        cache.save_sequence(0, tmp_path / "link")
        assert (tmp_path / "link").is_symlink()
    cache.load_sequence(1, tmp_path / "target")
    assert cache.sequence_length(1) == cache.sequence_length(0)
    assert not list(tmp_path.glob("*.unfinished"))

"""Pages of 8-bit integers: attention is that of a float32 cache with the values they stand for."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

import kvctl
from kvctl import Mask, PagedKVCache, Rope
from small_cache import DIM, KV_HEADS, LAYERS, PAGE, QO_HEADS, kv, make_cache, rows, step


def quantised(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the integers and the scale of each row: the largest magnitude is 127."""
    scale = np.abs(values).max(axis=-1, keepdims=True) / np.float32(127)
    return np.rint(values / scale).astype(np.int8), scale


def held(values: np.ndarray) -> np.ndarray:
    """Return what a cache makes of K or V."""
    integers, scale = quantised(values)
    return integers.astype(np.float32) * scale


class Twins:
    """An int8 cache, and one of float32 that is given the values which the other one holds.

    Every operation goes to both; attention and contents must agree to the bit.
    """

    def __init__(self, **changes: Any) -> None:
        self.int8 = make_cache(dtype="int8", **changes)
        self.float32 = make_cache(**changes)
        self.rounds = True
        self.number = 0

    def both(self, method: str, *args: Any, **options: Any) -> None:
        found = []
        for cache in (self.int8, self.float32):
            try:
                getattr(cache, method)(*args, **options)
                found.append("done")
            except (ValueError, KeyError, RuntimeError) as error:
                found.append(f"{type(error).__name__}: {error}")
        assert found[0] == found[1]

    def step(self, seq_ids: list[int], lengths: list[int], **options: Any) -> bool:
        """Return whether attention agreed, and the cache took the step at all."""
        qkv = rows(range(self.number, self.number + sum(lengths)))
        self.number += sum(lengths)
        other = qkv.copy()
        if self.rounds:
            other[:, :, QO_HEADS:] = held(qkv[:, :, QO_HEADS:])
        outs = []
        for cache, given in ((self.int8, qkv), (self.float32, other)):
            try:
                with cache.forward(seq_ids, lengths, **options):
                    outs.append(
                        [np.from_dlpack(cache.attention(i, given[i])) for i in range(LAYERS)]
                    )
            except (ValueError, kvctl.OutOfPagesError) as error:
                outs.append(str(error))
        if isinstance(outs[0], str):
            assert outs[0] == outs[1]
            return True
        return np.array_equal(outs[0], outs[1])

    def same_contents(self) -> bool:
        ids = self.int8.sequence_ids
        assert ids == self.float32.sequence_ids
        return all(
            np.array_equal(kv(self.int8, i), kv(self.float32, i))
            for i in ids
            if -1 not in self.int8.page_ids(i)
        )


def grow(twins: Twins, rng: Random, seq_id: int) -> bool:
    n = rng.randint(1, 9)
    kind = rng.choice(["chain", "tree", "mask", "pending"])
    if kind == "tree":
        parents = [rng.randint(-1, i - 1) for i in range(n)]
        return twins.step([seq_id], [n], mask=Mask.tree(parents))
    if kind == "mask":
        columns = twins.int8.sequence_length(seq_id) + n
        seen = np.random.default_rng(rng.randrange(1000)).random((n, columns)) < 0.7
        return twins.step([seq_id], [n], mask=Mask.full(seen))
    return twins.step([seq_id], [n], pending=kind == "pending")


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("changes", [{}, {"layer_windows": (0, 7), "page_size": 3}], ids=str)
def test_any_operations_leave_the_twins_alike(tmp_path: Path, changes: Any, seed: int) -> None:
    rng = Random(seed)
    twins = Twins(**changes)
    checkpoints: list[Any] = []
    for _ in range(120):
        ids = twins.int8.sequence_ids
        if not ids or (len(ids) < 4 and rng.random() < 0.1):
            twins.both("add_sequence", max(ids, default=0) + 1)
            continue
        seq_id = rng.choice(ids)
        length, pending = (
            getattr(twins.int8, f"{what}_length")(seq_id) for what in ("sequence", "pending")
        )
        name = rng.choice(["step"] * 6 + ["commit", "commit", "abort", "popn", "fork", "remove"])
        name = rng.choice([name] * 5 + ["evict", "window", "checkpoint", "rollback", "file"])
        if name == "step":
            assert grow(twins, rng, seq_id)
        elif name == "commit":
            kept = sorted(rng.sample(range(pending), rng.randint(0, pending)))
            twins.both("commit", [seq_id], [kept], any_nodes=True)
        elif name == "abort":
            twins.both("abort", [seq_id])
        elif name == "popn":
            twins.both("popn", seq_id, rng.randint(0, length))
        elif name == "fork":
            twins.both("fork_sequence", seq_id, max(ids) + 1, rng.randint(-1, length))
        elif name == "remove":
            twins.both("remove_sequence", seq_id)
        elif name == "evict" and -1 not in twins.int8.page_ids(seq_id):
            kept = sorted(rng.sample(range(length - pending), (length - pending) // 2))
            twins.both("evict", seq_id, kept)
        elif name == "window":
            twins.both("enable_sliding_window", seq_id, rng.randint(4, 20), sinks=2, horizon=4)
        elif name == "checkpoint":
            found = (twins.int8.checkpoint(seq_id), twins.float32.checkpoint(seq_id))
            checkpoints.append((seq_id, found))
        elif name == "rollback" and checkpoints:
            back, found = rng.choice(checkpoints)
            for cache, one in zip((twins.int8, twins.float32), found, strict=True):
                try:
                    cache.rollback(back, one)
                except (ValueError, KeyError):
                    assert cache.sequence_ids == ids
        elif name == "file" and not pending:
            for cache in (twins.int8, twins.float32):
                cache.save_sequence(seq_id, tmp_path / cache.dtype)
                cache.remove_sequence(seq_id)
                cache.load_sequence(seq_id, tmp_path / cache.dtype)
        twins.int8.debug_poison()
        twins.float32.debug_poison()
        assert twins.same_contents()


def test_the_comparison_sees_a_float32_cache_that_does_not_round() -> None:
    twins = Twins()
    twins.both("add_sequence", 0)
    assert twins.step([0], [9])
    assert twins.same_contents()
    twins.rounds = False
    assert not twins.step([0], [1])
    assert not twins.same_contents()


def test_a_row_comes_out_as_it_would_alone() -> None:
    together, alone = (make_cache(dtype="int8", rope=Rope()) for _ in "ab")
    qkv = rows(range(40))
    for cache in (together, alone):
        cache.add_sequence(0)
    with together.forward([0], [40]):
        outs = [np.from_dlpack(together.attention(i, qkv[i])) for i in range(LAYERS)]
    for row in range(40):
        with alone.forward([0], [1]):
            for layer in range(LAYERS):
                out = np.from_dlpack(alone.attention(layer, qkv[layer, row : row + 1]))
                np.testing.assert_array_equal(out[0], outs[layer][row])


def test_contents_are_the_nearest_multiples_of_the_scale() -> None:
    cache = make_cache(dtype="int8")
    cache.add_sequence(0)
    step(cache, 0, range(11))
    given = np.stack([rows(range(11))[:, :, QO_HEADS:-KV_HEADS], rows(range(11))[:, :, -KV_HEADS:]])
    np.testing.assert_array_equal(kv(cache, 0), held(given))
    assert kv(cache, 0).dtype == np.float32
    _, scale = quantised(given)
    assert (np.abs(kv(cache, 0) - given) <= 0.5001 * scale).all()


def test_pages_hold_integers_and_a_scale_behind_them() -> None:
    cache = make_cache(dtype="int8")
    assert (cache.dtype, "int8" in repr(cache)) == ("int8", True)
    cache.add_sequence(0)
    step(cache, 0, [5])
    pages = np.from_dlpack(cache.layer_pages(1))
    assert pages.shape == (cache.num_pages, 2, KV_HEADS, PAGE, DIM + 4)
    row = pages[cache.page_ids(0)[0], 1, 1, 0]
    integers, scale = quantised(rows([5])[1, 0, -1:])
    np.testing.assert_array_equal(row[:DIM], integers[0])
    assert row[DIM:].view(np.float32) == scale[0]


@pytest.mark.parametrize(("head_dim", "times"), [(64, 3.76), (128, 3.88), (256, 3.94)])
def test_memory(head_dim: int, times: float) -> None:
    sizes = [
        np.from_dlpack(make_cache(dtype=dtype, head_dim=head_dim).layer_pages(0)).nbytes
        for dtype in ("float32", "int8")
    ]
    assert sizes[0] / sizes[1] == pytest.approx(times, abs=0.01)


def test_zeros_stay_zeros_and_tiny_numbers_become_zeros() -> None:
    cache = make_cache(dtype="int8")
    cache.add_sequence(0)
    qkv = np.zeros((2, QO_HEADS + 2 * KV_HEADS, DIM), np.float32)
    qkv[1] = 1e-37
    with cache.forward([0], [2]):
        for layer in range(LAYERS):
            assert not np.from_dlpack(cache.attention(layer, qkv)).any()
    assert not kv(cache, 0).any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_rows_are_quantised(dtype: str) -> None:
    """They become float32 first; the output has their type."""
    import ml_dtypes

    cache = make_cache(dtype="int8")
    cache.add_sequence(0)
    qkv = rows(range(5)).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16)
    with cache.forward([0], [5]):
        for layer in range(LAYERS):
            bits = kvctl._ffi.convert.to_tensor(qkv[layer])
            assert str(cache.attention(layer, bits).dtype) == dtype
    wide = qkv.astype(np.float32)
    np.testing.assert_array_equal(kv(cache, 0)[1], held(wide[:, :, -KV_HEADS:]))


def test_keys_are_rotated_before_they_are_quantised() -> None:
    cache, exact = make_cache(dtype="int8", rope=Rope()), make_cache(rope=Rope())
    for one in (cache, exact):
        one.add_sequence(0)
        step(one, 0, range(20))
    np.testing.assert_array_equal(kv(cache, 0), held(kv(exact, 0)))


def test_evict_with_rotation_quantises_again() -> None:
    cache, exact = make_cache(dtype="int8", rope=Rope()), make_cache(rope=Rope())
    keep = [*range(2), *range(9, 20)]
    for one in (cache, exact):
        one.add_sequence(0)
        step(one, 0, range(20))
        one.evict(0, keep, rerotate=True)
    got, want = kv(cache, 0), kv(exact, 0)
    np.testing.assert_array_equal(got[1], held(want[1]))  # V as it was
    # K was rounded twice: by half of a scale each time, and a rotation mixes two elements.
    scale = np.abs(want[0]).max(axis=-1, keepdims=True) / 127
    error = np.abs(got[0] - want[0])
    assert 0 < error.max()
    assert (error <= 1.5 * scale).all()
    for one in (cache, exact):
        one.add_sequence(1)
    assert np.abs(step(cache, 0, [1]) - step(exact, 0, [1])).max() < 0.05


def test_selected_pages_and_sums_are_those_of_the_values() -> None:
    twins = Twins()
    twins.both("add_sequence", 0)
    sums: list[Any] = []
    for cache in (twins.int8, twins.float32):
        cache.observe_attention(lambda layer, ids, found: sums.append(np.from_dlpack(found[0])))
    assert twins.step([0], [30])
    np.testing.assert_array_equal(sums[:LAYERS], sums[LAYERS:])
    for cache in (twins.int8, twins.float32):
        cache.observe_attention(None)
        cache.select_pages(lambda layer, q: [[[1, 4], [2]]])
    assert twins.step([0], [1])
    for cache in (twins.int8, twins.float32):
        cache.select_pages(lambda layer, q: [[1, 2]])
    assert twins.step([0], [5])


def test_what_int8_pages_do_not_do_is_refused_by_name() -> None:
    with pytest.raises(NotImplementedError, match="int8 pages are not implemented with inline Ro"):
        make_cache(dtype="int8", rope=Rope(inline=True))
    cache = make_cache(dtype="int8")
    cache.add_sequence(0)
    with (
        pytest.raises(TypeError, match="qkv must be float32, float16 or bfloat16, got int8"),
        cache.forward([0], [1]),
    ):
        cache.attention(0, np.zeros((1, QO_HEADS + 2 * KV_HEADS, DIM), np.int8))
    assert cache.sequence_length(0) == 0


def test_a_saved_file_has_scales(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    cache = make_cache(dtype="int8", rope=Rope())
    cache.add_sequence(0)
    step(cache, 0, range(13))
    cache.save_sequence(0, tmp_path / "sequence")
    tensors = load_file(tmp_path / "sequence")
    assert sorted(tensors) == ["k", "k_scale", "v", "v_scale"]
    for name, values in zip("kv", kv(cache, 0), strict=True):
        found = tensors[name].astype(np.float32) * tensors[f"{name}_scale"][..., None]
        np.testing.assert_array_equal(found, values)
    float32: PagedKVCache = make_cache(rope=Rope())
    with pytest.raises(ValueError, match="dtype is 'int8' in the file and 'float32' in the cache"):
        float32.load_sequence(0, tmp_path / "sequence")

"""Windows that renumber their sinks on every device: the results of the CPU, and of float64.

CUDA cases need a GPU (``pytest -m cuda``); test_cuda_emulated.py runs them with the kernels on the
CPU.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import tvm_ffi

import kvctl
from devices import DEVICES, KVCTL_CUDA_LIBRARY, fetch, poison, put, require
from kvctl import Mask, PagedKVCache

HEADS, KV_HEADS, DIM, LAYERS = 4, 2, 64, 2
WIDTH = HEADS + 2 * KV_HEADS
SIZE, SINKS, THETA = 24, 3, 100.0
BOUND = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}
TREE = [-1, 0, 0, 1, 3, 2]


@pytest.fixture(autouse=True)
def _device(device):
    require(device)


devices = pytest.mark.parametrize("device", DEVICES)


def make_cache(device, dtype="float16", renumber=True, **options):
    shape = {"num_layers": LAYERS, "num_qo_heads": HEADS, "num_kv_heads": KV_HEADS}
    limits = {"max_total_tokens": 1024, "page_size": 8, "prefill_chunk_size": 128}
    rope = kvctl.Rope(theta=THETA)
    cache = PagedKVCache.create(
        **(shape | limits | {"head_dim": DIM, "dtype": dtype, "rope": rope} | options),
        device=device,
    )
    for seq_id in range(2):
        cache.add_sequence(seq_id)
    cache.enable_sliding_window(0, SIZE, sinks=SINKS, renumber_sinks=renumber)
    return cache


def step(cache, device, seed, lengths, given="float16", out="float16", options=None, **masks):
    """Attention of a step over both sequences: the output of every layer."""
    rng, outputs = np.random.default_rng(seed), []
    rows, dim = sum(lengths), cache.head_dim
    with cache.forward([0, 1], lengths, **masks):
        for layer in range(LAYERS):
            qkv = rng.standard_normal((rows, WIDTH, dim)).astype("float16")
            result = poison((rows, HEADS, dim), device, out)
            cache.attention(layer, put(qkv, device, given), result, **(options or {}))
            outputs.append(fetch(result))
    return np.stack(outputs)


def run(device, dtype="float16", given="float16", **options):
    """Steps from before the window is full to far behind it; chunks, trees and popn."""
    cache = make_cache(device, dtype, **options)
    kinds = {"given": given, "out": dtype}
    outputs = [step(cache, device, 1, [20, 9], **kinds)]
    outputs.append(step(cache, device, 2, [30, 5], **kinds))
    trees = [Mask.tree(TREE), Mask.tree([-1, 0])]
    outputs.append(step(cache, device, 3, [6, 2], mask=trees, **kinds))
    cache.commit([0, 1], [[0, 1, 3], [0]])
    cache.debug_poison()
    outputs += [step(cache, device, 4 + i, [1, 1], **kinds) for i in range(3)]
    cache.popn(0, 7)
    outputs.append(step(cache, device, 9, [2, 100], **kinds))
    cache.popn(0, 30)  # the window's start: nothing is beyond it
    outputs.append(step(cache, device, 10, [1, 1], **kinds))
    return outputs


def check(got, want, bound):
    for one, other in zip(got, want, strict=True):
        assert np.linalg.norm(one - other) < bound * np.linalg.norm(other)


@devices
@pytest.mark.parametrize(
    ("dtype", "given", "head_dim"),
    [
        ("float16", "float16", 64),
        ("float16", "float32", 128),
        ("float32", "float32", 64),
        ("bfloat16", "bfloat16", 80),
        ("float16", "float16", 24),
    ],
)
def test_renumbered_sinks_are_those_of_the_cpu(device, dtype, given, head_dim):
    want = run("cpu", dtype, given, head_dim=head_dim)
    check(run(device, dtype, given, head_dim=head_dim), want, BOUND[dtype])
    # The negative control: where the sinks are not renumbered.
    other = run("cpu", dtype, given, head_dim=head_dim, renumber=False)
    with pytest.raises(AssertionError):
        check(other, want, BOUND[dtype])


def rotated(x, position):
    half = DIM // 2
    angles = position * THETA ** (-np.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    turned = [a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)]
    return np.concatenate(turned, -1)


@devices
def test_renumbered_sinks_agree_with_float64(device):
    """A token sees the sinks as if they lay just before its window, and nothing between."""
    cache = make_cache(device)
    length = 60
    got = np.concatenate(
        [step(cache, device, i, [n, 1])[-1][:n] for i, n in enumerate([20, 1, 38, 1])]
    )
    tokens = []
    for i, n in enumerate([20, 1, 38, 1]):
        rng = np.random.default_rng(i)
        for _ in range(LAYERS):
            qkv = rng.standard_normal((n + 1, WIDTH, DIM)).astype("float16")
        tokens.append(qkv[:n].astype(float))
    tokens = np.concatenate(tokens)
    past = SIZE + SINKS - 1
    for p in range(length):
        places = {c: p - c for c in range(p + 1) if c < SINKS or p - c < SIZE}
        if p > past:
            places |= {c: past - c for c in range(SINKS)}
        for head in range(HEADS):
            kv = HEADS + head // (HEADS // KV_HEADS)
            keys = np.array([rotated(tokens[c, kv], -distance) for c, distance in places.items()])
            weights = np.exp(keys @ tokens[p, head] * DIM**-0.5)
            want = weights / weights.sum() @ tokens[list(places), kv + KV_HEADS]
            assert np.linalg.norm(got[p, head] - want) < 3e-3 * np.linalg.norm(want)


@devices
def test_options_and_sums_with_renumbered_sinks(device):
    results = []
    for where in ["cpu", device]:
        cache = make_cache(where)
        step(cache, where, 1, [70, 9])
        keys = [put(np.zeros((79 + 4, HEADS)), where, "float32") for _ in range(2)]
        options = {
            "soft_cap": 4.0,
            "alibi_slopes": put(np.array([0.5, 0.1, 0.0, 0.02]), where, "float32"),
            "sinks": put(np.array([0.0, 3.0, -1.0, 1.0]), where, "float32"),
            "lse": put(np.zeros((4, HEADS)), where, "float32"),
            "mass": keys[0],
        }
        out = step(cache, where, 2, [3, 1], options=options)
        results.append([out, fetch(options["lse"]), fetch(keys[0])])
    check(results[1], results[0], 2e-3)


@devices
def test_the_librarys_rotation_is_called_for_sinks_too(device):
    """A cache that TVM's function creates rotates by a function of the model library."""
    calls = []

    def split_rotary(fused, positions, q, k, v, apply):
        rows = fetch(fused)
        at = fetch(positions)[:, None, None]
        calls.append(at.ravel().tolist())
        q_rows, k_rows = rows[:, :HEADS], rows[:, HEADS : HEADS + KV_HEADS]
        half = DIM // 2
        angles = at * THETA ** (-np.arange(half) / half)

        def turn(x):
            a, b = x[..., :half], x[..., half:]
            cos, sin = np.cos(angles), np.sin(angles)
            return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

        for to, values in ((q, turn(q_rows)), (k, turn(k_rows)), (v, rows[:, HEADS + KV_HEADS :])):
            put(values, device, "float16").copyto(to)

    if device == "cuda" and not os.environ.get(KVCTL_CUDA_LIBRARY):
        pytest.skip("a Python rotation on a GPU would have to order its copies with the stream")
    nothing = tvm_ffi.convert(lambda *args: None)
    with kvctl.installed():
        create = tvm_ffi.get_global_func("vm.builtin.paged_attention_kv_cache_create")
    shape = [tvm_ffi.Shape([4, 1024, 128, 8, 0, 0]), tvm_ffi.Shape([0, LAYERS])]
    sizes = [HEADS, KV_HEADS, DIM, DIM, tvm_ffi.Shape([0] * LAYERS), False, 1, 1.0, THETA, None]
    handle = create(
        *shape,
        *sizes,
        put(np.zeros(()), device, "float16"),
        nothing,
        None,
        *[["tirx", nothing]] * 7,
        [],
        [nothing, nothing],
        tvm_ffi.convert(split_rotary),
        nothing,
        nothing,
        nothing,
    )
    cache = PagedKVCache.wrap(handle)
    for seq_id in range(2):
        cache.add_sequence(seq_id)
    cache.enable_sliding_window(0, SIZE, sinks=SINKS, renumber_sinks=True)
    own = make_cache(device)
    for seed, lengths in enumerate([[40, 3], [1, 2], [5, 1]]):
        got = step(cache, device, seed, lengths)
        check([got], [step(own, device, seed, lengths)], 3e-3)
    assert [SIZE + SINKS - 1, 3, 4] in calls  # of the second step, at the sinks


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.cuda)])
def test_a_recording_fits_steps_with_sinks_once_there_were_some(device):
    if not os.environ.get(KVCTL_CUDA_LIBRARY):
        pytest.skip("needs the emulation's graphs")
    begin, end, replay = (
        tvm_ffi.get_global_func(f"emulate.{name}")
        for name in ("begin_capture", "end_capture", "replay")
    )
    cache, plain = make_cache(device), make_cache(device)
    rng = np.random.default_rng(4)
    qkv = put(np.zeros((2, WIDTH, DIM)), device, "float16")
    outs = [poison((2, HEADS, DIM), device, "float16") for _ in range(LAYERS)]

    def record():
        cache.begin_forward([0, 1], [1, 1])
        begin()
        for layer, out in enumerate(outs):
            cache.attention(layer, qkv, out)
        number = end()
        cache.abort()
        return number

    def replayed(number):
        values = rng.standard_normal((2, WIDTH, DIM))
        qkv.copyfrom(values.astype(np.float16))
        cache.begin_forward([0, 1], [1, 1])
        replay(number)
        cache.end_forward()
        want = [poison((2, HEADS, DIM), device, "float16") for _ in range(LAYERS)]
        with plain.forward([0, 1], [1, 1]):
            for layer, out in enumerate(want):
                plain.attention(layer, put(values, device, "float16"), out)
        for one, other in zip(outs, want, strict=True):
            np.testing.assert_array_equal(fetch(one), fetch(other))

    for one in (cache, plain):
        step(one, device, 1, [SIZE + SINKS - 1, 3])
    early = record()
    replayed(early)  # the last before any sinks are renumbered
    before = cache.checkpoint(0), cache.checkpoint(1)
    cache.begin_forward([0, 1], [1, 1])
    replay(early)
    cache.end_forward()
    for seq_id, one in enumerate(before):
        cache.rollback(seq_id, one)
    with pytest.raises(RuntimeError, match="a recorded graph was replayed"):
        cache.begin_forward([0, 1], [1, 1])
    late = record()
    for _ in range(3):
        replayed(late)
    for one in (cache, plain):
        one.popn(0, 10)  # no sinks are beyond the window
    replayed(late)
    replayed(early)

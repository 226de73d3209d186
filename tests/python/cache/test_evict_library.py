"""Eviction where a function of the model library rotates: keys turn by it, or not at all.

The compiled functions are those that MLC-LLM compiles into its libraries.

One file, since all tests share the compiled rotations.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm_ffi

import kvctl
from builtin_cache import compiler_or_skip
from kvctl import PagedKVCache
from library_rotation import frequencies as plain_frequencies
from library_rotation import library_cache, rotation_in_python, turned

LAYERS, QO_HEADS, KV_HEADS, DIM, PAGE = 2, 4, 2, 64, 4
THETA = 10000.0
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "original_max_position_embeddings": 64,
    "factor": 4.0,
    "beta_fast": 32,
    "beta_slow": 1,
    "inv_theta_log_scale": 1 / (2 * np.log(THETA)),
}


@functools.cache
def compiled(dtype: str, scaling: tuple[tuple[str, Any], ...], scale: float, dim: int) -> Any:
    tvm = compiler_or_skip()
    from tvm.relax.frontend.nn.llm import position_embedding

    function = position_embedding.llama_rope_with_position_map(
        THETA, scale, DIM, QO_HEADS, KV_HEADS, dtype, dict(scaling), dim
    )
    module = tvm.IRModule({"rotate": function.with_attr("global_symbol", "rotate")})
    return tvm.tirx.build(module, target=tvm.target.Target("llvm"))["rotate"]


def rotation(dtype: str, scaling: Any = None, *, scale: float = 1.0, dim: int = DIM) -> Any:
    return compiled(dtype, tuple((scaling or {}).items()), scale, dim)


def make_cache(
    rotate: Any,
    dtype: str = "float32",
    *,
    rope: str = "normal",
    factors: Any = None,
    tokens: int = 160,
    chunk: int = 64,
) -> PagedKVCache:
    return library_cache(
        rotate,
        num_layers=LAYERS,
        num_qo_heads=QO_HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=DIM,
        max_total_tokens=tokens,
        page_size=PAGE,
        prefill_chunk_size=chunk,
        dtype=dtype,
        rope=rope,
        factors=factors,
    )


def rows(numbers: Any, dtype: str) -> np.ndarray:
    """(layers, tokens, heads, dim): the q, k and v that belong to these tokens."""
    shape = (LAYERS, QO_HEADS + 2 * KV_HEADS, DIM)
    each = [np.random.default_rng(n).standard_normal(shape, dtype=np.float32) for n in numbers]
    return np.stack(each, axis=1).astype(dtype)


def step(cache: PagedKVCache, seq_id: int, numbers: Any, **options: Any) -> np.ndarray:
    qkv = rows(numbers, cache.dtype)
    with cache.forward([seq_id], [len(numbers)], **options):
        return np.stack([np.from_dlpack(cache.attention(i, qkv[i])) for i in range(LAYERS)])


def kv(cache: PagedKVCache, seq_id: int) -> np.ndarray:
    return np.stack([np.from_dlpack(part) for part in cache.get_kv(seq_id)])


def state(cache: PagedKVCache) -> Any:
    """Everything that can be seen of a cache, the position of sequence 0's next token included."""
    cache.begin_forward([0], [1])
    seen: list[Any] = [np.from_dlpack(cache.query_positions()).tobytes()]
    cache.abort()
    seen += [cache.sequence_ids, cache.num_available_pages]
    return seen + [kv(cache, seq_id).tobytes() for seq_id in cache.sequence_ids]


def frequencies(scaling: str) -> np.ndarray:
    """Radians per position of each pair of elements."""
    if scaling == "partial":
        return THETA ** (-np.arange(16) / 16)
    plain = plain_frequencies(DIM)
    if scaling == "scaled":
        return plain * 0.25
    if scaling == "llama3":  # the published rule: long waves are stretched, short ones are not
        waves = LLAMA3["original_max_position_embeddings"] * plain / (2 * np.pi)
        smooth = np.clip((waves - 1.0) / (4.0 - 1.0), 0, 1)
        return plain * (smooth + (1 - smooth) / 8.0)
    return plain


def keys_at(numbers: Any, positions: Any, scaling: str, dtype: str) -> np.ndarray:
    """What the cache has to hold for these tokens at these positions, in float64."""
    key = rows(numbers, dtype)[:, :, QO_HEADS:-KV_HEADS].astype(np.float64)
    angle = np.asarray(positions)[:, None, None] * frequencies(scaling)
    half = angle.shape[-1]
    low, high = np.arange(half), np.arange(half) + half
    if scaling == "gptj":
        low, high = 2 * np.arange(half), 2 * np.arange(half) + 1
    out = key.copy()
    out[..., low] = key[..., low] * np.cos(angle) - key[..., high] * np.sin(angle)
    out[..., high] = key[..., high] * np.cos(angle) + key[..., low] * np.sin(angle)
    return out


SCALINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"scale": 0.25},
    "partial": {"dim": 32},
    "gptj": {"scaling": {"rope_type": "gptj"}},
    "llama3": {"scaling": LLAMA3},
}
KEEP = [0, 1, 5, 6, 9, 12, 13, 18]
# Keys are below 5; of 16 bits they are rounded twice, when they are cached and when they turn.
TOLERANCES = {"float32": 4e-6, "float16": 2.0**-8}
both = pytest.mark.parametrize("dtype", TOLERANCES)


@both
@pytest.mark.parametrize("scaling", SCALINGS)
def test_turned_keys_are_those_of_the_new_positions(scaling: str, dtype: str) -> None:
    rotate, tolerance = rotation(dtype, **SCALINGS[scaling]), TOLERANCES[dtype]
    cache, fresh = make_cache(rotate, dtype), make_cache(rotate, dtype)
    cache.add_sequence(0)
    fresh.add_sequence(0)
    step(cache, 0, range(20))
    before = kv(cache, 0)
    np.testing.assert_allclose(
        before[0], keys_at(range(20), range(20), scaling, dtype), atol=tolerance
    )
    cache.evict(0, KEEP, rerotate=True)
    cache.debug_poison()
    after = kv(cache, 0)
    np.testing.assert_allclose(
        after[0], keys_at(KEEP, range(len(KEEP)), scaling, dtype), atol=tolerance
    )
    np.testing.assert_array_equal(after[:, :, :2], before[:, :, :2])  # they stood there already
    np.testing.assert_array_equal(after[1], before[1][:, KEEP])
    assert np.abs(after[0] - before[0][:, KEEP]).max() > 0.1
    step(fresh, 0, KEEP)
    got, expected = step(cache, 0, [40, 41]), step(fresh, 0, [40, 41])
    np.testing.assert_allclose(got, expected, atol=tolerance)


@both
def test_to_later_positions_too(dtype: str) -> None:
    """Positions that were given may lie before those that follow from counting."""
    rotate = rotation(dtype)
    cache = make_cache(rotate, dtype)
    cache.add_sequence(0)
    step(cache, 0, range(6), positions=[0, 0, 1, 1, 2, 2])
    step(cache, 0, range(6, 9), positions=[700, 2000, 2000])
    cache.evict(0, [0, 2, 3, 4, 5, 7], rerotate=True)
    np.testing.assert_allclose(
        kv(cache, 0)[0],
        keys_at([0, 2, 3, 4, 5, 7], range(6), "plain", dtype),
        atol=max(TOLERANCES[dtype], 2000 * 2.0**-22),
    )


def test_more_keys_than_a_step_has_tokens() -> None:
    cache = make_cache(rotation("float32"), chunk=5)
    cache.add_sequence(0)
    for first in range(0, 40, 5):
        step(cache, 0, range(first, first + 5))
    keep = list(range(3, 40, 2))
    cache.evict(0, keep, rerotate=True)
    np.testing.assert_allclose(
        kv(cache, 0)[0], keys_at(keep, range(len(keep)), "plain", "float32"), atol=4e-6
    )


def test_inline_keys_are_rotated_anew() -> None:
    """Bit for bit those of a fresh cache: nothing is rounded twice."""
    rotate = rotation("float16")
    cache, fresh = (make_cache(rotate, "float16", rope="inline") for _ in "ab")
    cache.add_sequence(0)
    fresh.add_sequence(0)
    step(cache, 0, range(20))
    cache.evict(0, KEEP, rerotate=True)
    step(fresh, 0, KEEP)
    np.testing.assert_array_equal(kv(cache, 0), kv(fresh, 0))
    np.testing.assert_array_equal(step(cache, 0, [60, 61]), step(fresh, 0, [60, 61]))


@pytest.mark.parametrize("rope", ["normal", "inline"])
def test_extension_factors_in_steps_that_all_take_the_same(rope: str) -> None:
    """The factors go to the function; with chunks this short it never takes the long ones."""
    cache, fresh = (
        make_cache(longrope(1.0), rope=rope, factors=FACTORS[::-1].copy(), chunk=32) for _ in "ab"
    )
    cache.add_sequence(0)
    fresh.add_sequence(0)
    step(cache, 0, range(20))
    cache.evict(0, KEEP, rerotate=True)
    step(fresh, 0, KEEP)
    np.testing.assert_allclose(kv(cache, 0), kv(fresh, 0), atol=4e-6)
    np.testing.assert_allclose(step(cache, 0, [40]), step(fresh, 0, [40]), atol=4e-6)


def test_other_factors_are_another_layout(tmp_path: Any) -> None:
    """Page groups have no place for factors; a saved sequence knows them."""
    cache, same, other = (
        make_cache(longrope(1.0), factors=factors) for factors in (FACTORS, FACTORS, 2 * FACTORS)
    )
    cache.add_sequence(0)
    step(cache, 0, range(9))
    layout_hash = tvm_ffi.get_global_func("vm.builtin.attention_kv_cache_get_layout_hash")
    with pytest.raises(NotImplementedError, match="RoPE extension factors; save_sequence has"):
        layout_hash(cache)
    cache.save_sequence(0, tmp_path / "saved")
    same.load_sequence(0, tmp_path / "saved")
    np.testing.assert_array_equal(step(same, 0, [1]), step(cache, 0, [1]))
    with pytest.raises(ValueError, match="rope_ext_factors"):
        other.load_sequence(0, tmp_path / "saved")


@both
def test_rollback_and_forks_do_not_notice(dtype: str) -> None:
    cache = make_cache(rotation(dtype), dtype)
    cache.add_sequence(0)
    step(cache, 0, range(18))
    cache.fork_sequence(0, 1)
    before, free = kv(cache, 0), cache.num_available_pages
    checkpoint = cache.checkpoint(1)
    cache.evict(1, KEEP[:-1], rerotate=True)
    np.testing.assert_array_equal(kv(cache, 0), before)
    cache.fork_sequence(1, 2)
    turned = kv(cache, 1)
    cache.evict(2, [0, 3, 4], rerotate=True)
    step(cache, 1, [50, 51])
    np.testing.assert_array_equal(kv(cache, 1)[:, :, :7], turned)
    step(cache, 2, [50])
    cache.rollback(1, checkpoint)
    np.testing.assert_array_equal(kv(cache, 1), before)
    cache.remove_sequence(2)
    assert cache.num_available_pages == free
    np.testing.assert_array_equal(step(cache, 1, [7]), step(cache, 0, [7]))


@both
def test_a_windowed_sequence_closes_its_gap(dtype: str) -> None:
    rotate = rotation(dtype)
    cache, fresh = make_cache(rotate, dtype), make_cache(rotate, dtype)
    for each in (cache, fresh):
        each.add_sequence(0)
        each.enable_sliding_window(0, 6, sinks=2, horizon=0)
    step(cache, 0, range(40))
    keep = [0, 1, *range(35, 40)]
    with pytest.raises(ValueError, match=r"evicted tokens \[4, 32\)"):
        cache.evict(0, range(40), rerotate=True)
    cache.evict(0, keep, rerotate=True)
    tolerance = TOLERANCES[dtype]
    np.testing.assert_allclose(
        kv(cache, 0)[0], keys_at(keep, range(7), "plain", dtype), atol=tolerance
    )
    step(fresh, 0, keep)
    for token in range(40, 52):  # the window slides on
        got, expected = step(cache, 0, [token]), step(fresh, 0, [token])
        np.testing.assert_allclose(got, expected, atol=tolerance)


def in_python(scaling: Callable[..., np.ndarray]) -> Any:
    return rotation_in_python(scaling, KV_HEADS)


def longrope(attention_scale: float) -> Any:
    """As TVM means it (its own does not compile): long factors in steps of more than 32 tokens."""

    def scaling(x: np.ndarray, at: np.ndarray, factors: np.ndarray) -> np.ndarray:
        long, short = np.split(factors, 2)
        return attention_scale * turned(x, at * FREQUENCIES / (long if len(x) > 32 else short))

    return in_python(scaling)


FREQUENCIES = plain_frequencies(DIM)
EXACT = in_python(lambda x, at: turned(x, at * FREQUENCIES))
FACTORS = np.r_[np.full(DIM // 2, 4.0), np.ones(DIM // 2)].astype("float32")  # long, then short
UNLAWFUL: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "attention scale": (
        lambda: {"rotate": in_python(lambda x, at: 1.19 * turned(x, at * FREQUENCIES))},
        r"changes keys at position 0, where -?\d.*becomes",
    ),
    "other waves far out": (  # as dynamic NTK has, from some position on
        lambda: {
            "rotate": in_python(
                lambda x, at: turned(x, at * FREQUENCIES * np.where(at > 16, 0.5, 1.0))
            )
        },
        "keys at position 18 cannot be turned to 7",
    ),
    "no rotation": (
        lambda: {"rotate": in_python(lambda x, at: x * np.exp(at / 100.0) + at)},
        r"keys at position 5 cannot be turned to 2: the .* by the difference, -3,",
    ),
    "not a number": (
        lambda: {"rotate": in_python(lambda x, at: np.where(at < 0, np.nan, x))},
        "keys at position 5 cannot be turned to 2",
    ),
    # TVM's YaRN blends frequencies by element where it ought to by pair: lengths change.
    "yarn": (lambda: {"rotate": rotation("float32", YARN)}, "cannot be turned"),
    "longrope": (
        lambda: {"rotate": longrope(1.19), "factors": FACTORS, "chunk": 32},
        "changes keys at position 0",
    ),
    "longrope in long chunks": (
        lambda: {"rotate": longrope(1.0), "factors": FACTORS, "chunk": 33},
        "depends on how many tokens it rotates at a time",
    ),
    "longrope, inline": (
        lambda: {"rotate": longrope(1.19), "factors": FACTORS, "rope": "inline"},
        "depends on how many tokens it rotates at a time",
    ),
}


@pytest.mark.parametrize("name", UNLAWFUL)
def test_what_is_not_a_rotation_is_refused_and_changes_nothing(name: str) -> None:
    options, message = UNLAWFUL[name]
    cache = make_cache(**options())
    cache.add_sequence(0)
    step(cache, 0, range(20))
    cache.fork_sequence(0, 1)
    before = state(cache)
    for _ in range(2):  # what was found out once is said again
        with pytest.raises(NotImplementedError, match=message):
            cache.evict(0, KEEP, rerotate=True)
        assert state(cache) == before
    cache.evict(0, KEEP)  # positions stay
    assert cache.sequence_length(0) == len(KEEP)


@pytest.mark.parametrize("rope", ["normal", "inline"])
def test_a_function_that_fails_changes_nothing_whenever_it_does(rope: str) -> None:
    calls_left = [1 << 30]

    def scaling(x: np.ndarray, at: np.ndarray) -> np.ndarray:
        calls_left[0] -= 1
        if calls_left[0] < 0:
            raise ArithmeticError("no more")
        return turned(x, at * FREQUENCIES)

    cache = make_cache(in_python(scaling), rope=rope, chunk=20)
    cache.add_sequence(0)
    step(cache, 0, range(20))
    before = state(cache)
    for calls in range(100):
        calls_left[0] = calls
        try:
            cache.evict(0, KEEP, rerotate=True)
            break
        except Exception as error:
            assert "no more" in str(error)
        calls_left[0] = 1 << 30
        assert state(cache) == before
    assert calls >= LAYERS
    calls_left[0] = 1 << 30
    fresh = make_cache(EXACT, rope=rope)
    fresh.add_sequence(0)
    step(fresh, 0, KEEP)
    np.testing.assert_allclose(kv(cache, 0), kv(fresh, 0), atol=4e-6)


def test_without_a_free_page_nothing_changes() -> None:
    cache = make_cache(rotation("float32"), tokens=20)
    cache.add_sequence(0)
    step(cache, 0, range(20))
    cache.fork_sequence(0, 1)
    cache.popn(1, 2)
    before = state(cache)
    with pytest.raises(kvctl.OutOfPagesError, match=r"evict needs 2 pages and 1 of 6 are free"):
        cache.evict(0, KEEP, rerotate=True)
    assert state(cache) == before


def test_the_function_is_not_called_where_nothing_turns() -> None:
    positions: list[int] = []

    def scaling(x: np.ndarray, at: np.ndarray) -> np.ndarray:
        positions.extend(at.flat)
        return turned(x, at * FREQUENCIES)

    cache = make_cache(in_python(scaling), chunk=8)
    cache.add_sequence(0)
    step(cache, 0, range(8))
    cache.evict(0, range(7), rerotate=True)  # now the function has been tried out
    before = len(positions)
    cache.evict(0, range(5), rerotate=True)
    cache.evict(0, [], rerotate=True)
    assert len(positions) == before
    step(cache, 0, [3])
    assert positions[before:] == [0] * LAYERS

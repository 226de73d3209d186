"""Eviction: what stays, where it stands, what attention then sees, and the way back.

One file, since all tests evict from the same small cache.
"""

from __future__ import annotations

import numpy as np
import pytest
import tvm_ffi

import kvctl
from kvctl import TokenTree
from kvctl.cache.paged_kv_cache import Rope
from small_cache import attention, kv, make_cache, step

KEEP = [0, 1, 5, 6, 9, 12, 13, 18]
NO_ROPE = Rope(theta=1e30, scale=0.0)


@pytest.mark.parametrize("rope", [None, Rope(), Rope(theta=500.0, scale=0.25)])
def test_kept_tokens_keep_their_positions(rope: Rope | None) -> None:
    cache = make_cache(rope=rope)
    cache.add_sequence(0)
    step(cache, 0, range(20))
    before = kv(cache, 0)
    cache.evict(0, KEEP)
    assert cache.sequence_length(0) == len(KEEP)
    np.testing.assert_array_equal(kv(cache, 0), before[:, :, KEEP])
    got = step(cache, 0, [20, 21])
    expected = attention([*KEEP, 20, 21], [*KEEP, 20, 21], 2, rope or NO_ROPE)
    np.testing.assert_allclose(got, expected, atol=2e-6)


def test_the_next_position_is_the_one_that_would_have_come() -> None:
    cache = make_cache(rope=Rope())
    cache.add_sequence(0)
    step(cache, 0, range(10))
    for keep in ([0, 3, 4], [0, 1], []):
        cache.evict(0, keep)
        cache.begin_forward([0], [2])
        np.testing.assert_array_equal(np.from_dlpack(cache.query_positions()), [10, 11])
        cache.abort()


def test_it_is_as_if_the_others_had_never_been_visible() -> None:
    """Bit for bit the attention of a cache that was fed the kept tokens at their positions."""
    cache, other = make_cache(rope=Rope()), make_cache(rope=Rope(), page_size=16)
    cache.add_sequence(0)
    other.add_sequence(0)
    step(cache, 0, range(20))
    cache.evict(0, KEEP)
    step(other, 0, KEEP, positions=KEEP)
    np.testing.assert_array_equal(step(cache, 0, [30]), step(other, 0, [30], positions=[20]))


@pytest.mark.parametrize("rope", [Rope(), Rope(theta=500.0, scale=0.25)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 3e-6), ("float16", 4e-3), ("bfloat16", 3e-2)]
)
def test_rerotated_keys_are_as_if_they_alone_had_been_cached(
    rope: Rope, dtype: str, tolerance: float
) -> None:
    cache, fresh = make_cache(rope=rope, dtype=dtype), make_cache(rope=rope, dtype=dtype)
    cache.add_sequence(0)
    fresh.add_sequence(0)
    step(cache, 0, range(20))
    cache.evict(0, KEEP, rerotate=True)
    step(fresh, 0, KEEP)
    if dtype != "bfloat16":  # which NumPy cannot read
        difference = np.abs(kv(cache, 0).astype(np.float32) - kv(fresh, 0).astype(np.float32))
        assert difference[0].max() < tolerance
        assert difference[1].max() == 0
    cache.begin_forward([0], [1])
    np.testing.assert_array_equal(np.from_dlpack(cache.query_positions()), [len(KEEP)])
    cache.abort()
    got, expected = step(cache, 0, [40, 41]), step(fresh, 0, [40, 41])
    np.testing.assert_allclose(got, expected, atol=tolerance)
    count = len(KEEP) + 2
    exact = attention([*KEEP, 40, 41], list(range(count)), 2, rope)
    np.testing.assert_allclose(got, exact, atol=tolerance)


def test_inline_keys_are_rotated_anew() -> None:
    """Bit for bit those of a fresh cache: nothing is rounded twice."""
    rope = Rope(inline=True)
    cache, fresh = (make_cache(rope=rope, dtype="float16", prefill_chunk_size=20) for _ in "ab")
    cache.add_sequence(0)
    fresh.add_sequence(0)
    step(cache, 0, range(20))
    step(cache, 0, range(20, 40))
    keep = [0, *range(3, 40, 2)]
    plain = kv(cache, 0)
    cache.evict(0, keep, rerotate=True)
    step(fresh, 0, keep)
    np.testing.assert_array_equal(kv(cache, 0), plain[:, :, keep])
    np.testing.assert_array_equal(step(cache, 0, [60, 61]), step(fresh, 0, [60, 61]))


def test_streaming_far_beyond_the_window_stays_exact() -> None:
    """Sinks and the latest tokens, renumbered again and again (StreamingLLM)."""
    cache = make_cache(rope=Rope())
    cache.add_sequence(0)
    kept: list[int] = []
    for token in range(0, 400, 2):
        got = step(cache, 0, [token, token + 1])
        kept += [token, token + 1]
        exact = attention(kept, list(range(len(kept))), 2, Rope())
        np.testing.assert_allclose(got, exact, atol=2e-5)
        if len(kept) > 20:
            stay = [0, 1, 2, 3, *range(8, len(kept))]
            cache.evict(0, stay, rerotate=True)
            kept = [kept[i] for i in stay]


@pytest.mark.parametrize("rerotate", [False, True])
def test_windows_measure_positions(rerotate: bool) -> None:
    """By default original distances; after renumbering the new ones. Sinks are positions too."""
    cache = make_cache(rope=Rope(), layer_windows=(0, 5))
    cache.add_sequence(0)
    step(cache, 0, range(20))
    cache.evict(0, KEEP, rerotate=rerotate)
    positions = [*range(len(KEEP)), 8, 9] if rerotate else [*KEEP, 20, 21]
    cache.enable_sliding_window(0, 9, sinks=2)
    got = step(cache, 0, [50, 51])
    at = np.array(positions)
    distance = at[-2:, None] - at
    near = (distance < 9) | (at < 2)
    for layer, see in enumerate([near, near & (distance < 5)]):
        exact = attention([*KEEP, 50, 51], positions, 2, Rope(), see)
        np.testing.assert_allclose(got[layer], exact[layer], atol=3e-6)


def test_a_windowed_sequence_closes_its_gap() -> None:
    cache = make_cache(rope=Rope())
    cache.add_sequence(0)
    cache.enable_sliding_window(0, 6, sinks=2, horizon=0)
    step(cache, 0, range(40))
    with pytest.raises(ValueError, match=r"evicted tokens \[4, 32\)"):
        cache.evict(0, range(40))
    keep = [0, 1, *range(35, 40)]
    cache.evict(0, keep, rerotate=True)
    assert cache.sequence_length(0) == 7
    assert kv(cache, 0).shape[2] == 7
    exact = attention([*keep, 40], list(range(8)), 1, Rope(), None)
    np.testing.assert_allclose(step(cache, 0, [40]), exact, atol=3e-6)


def test_windows_set_through_tvm_count_what_they_hold() -> None:
    cache = make_cache(rope=Rope())
    cache.add_sequence(0)
    enable = tvm_ffi.get_global_func("vm.builtin.attention_kv_cache_enable_sliding_window_for_seq")
    enable(cache, 0, 8, 2)
    step(cache, 0, range(40))
    assert cache.sequence_length(0) == 8
    held = kv(cache, 0)
    with pytest.raises(IndexError, match="kept token 8 is not in sequence 0, which has 8"):
        cache.evict(0, range(9))
    cache.evict(0, [0, 1, 5, 7])  # of the tokens 0, 1, 34, ..., 39
    assert cache.sequence_length(0) == 4
    np.testing.assert_array_equal(kv(cache, 0), held[:, :, [0, 1, 5, 7]])


def test_rollback_to_before_is_exact_and_pins_no_more_than_it_needs() -> None:
    cache = make_cache(rope=Rope())
    cache.add_sequence(0)
    step(cache, 0, range(20))
    before, free = kv(cache, 0), cache.num_available_pages
    checkpoint = cache.checkpoint(0)
    cache.evict(0, [*range(10), *range(14, 20)], rerotate=True)  # two pages stay as they are
    assert cache.num_available_pages == free - 2
    step(cache, 0, range(60, 70))
    cache.rollback(0, checkpoint)
    np.testing.assert_array_equal(kv(cache, 0), before)
    assert cache.num_available_pages == free
    other = make_cache(rope=Rope())
    other.add_sequence(0)
    step(other, 0, range(20))
    np.testing.assert_array_equal(step(cache, 0, [5]), step(other, 0, [5]))


def test_a_fork_does_not_notice() -> None:
    cache = make_cache(rope=Rope())
    cache.add_sequence(0)
    step(cache, 0, range(18))
    cache.fork_sequence(0, 1)
    before = kv(cache, 0)
    cache.evict(1, KEEP[:-1], rerotate=True)
    np.testing.assert_array_equal(kv(cache, 0), before)
    cache.fork_sequence(1, 2, 5)
    assert cache.sequence_length(2) == 5
    cache.evict(0, range(3))
    assert cache.sequence_length(1) == 7


def test_popn_takes_back_kept_tokens() -> None:
    cache = make_cache(rope=Rope())
    cache.add_sequence(0)
    step(cache, 0, range(20))
    cache.evict(0, KEEP)
    cache.popn(0, 3)  # 12, 13 and 18: the next one stands where 12 stood
    got = step(cache, 0, [12])
    np.testing.assert_allclose(
        got, attention([0, 1, 5, 6, 9, 12], [0, 1, 5, 6, 9, 12], 1, Rope()), atol=3e-6
    )


def test_trees_on_an_evicted_context() -> None:
    cache = make_cache(rope=Rope())
    cache.add_sequence(0)
    step(cache, 0, range(20))
    cache.evict(0, KEEP)
    tree = TokenTree([30, 31, 32, 33], [-1, 0, 0, 2])
    got = step(cache, 0, [30, 31, 32, 33], mask=tree)
    path = [*KEEP, 30, 32, 33]
    exact = attention(path, [*KEEP, 20, 21, 22], 3, Rope())
    np.testing.assert_allclose(got[:, [0, 2, 3]], exact, atol=3e-6)
    with pytest.raises(ValueError, match="commit or abort them before evicting"):
        cache.evict(0, [0])
    cache.commit([0], [[0, 2, 3]])
    cache.evict(0, [0, 8, 9, 10])
    exact = attention([0, 30, 32, 33, 9], [0, 20, 21, 22, 23], 1, Rope())
    np.testing.assert_allclose(step(cache, 0, [9]), exact, atol=3e-6)


@pytest.mark.torch
def test_masks_of_indices_booleans_and_other_arrays() -> None:
    torch = pytest.importorskip("torch")
    mask = np.isin(np.arange(20), KEEP)
    results = []
    for keep in (KEEP, tuple(KEEP), np.array(KEEP, np.int32), mask, list(mask), torch.tensor(mask)):
        cache = make_cache()
        cache.add_sequence(0)
        step(cache, 0, range(20))
        cache.evict(0, keep)
        results.append(kv(cache, 0))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


REFUSALS = {
    "sequence": (dict(seq_id=7, keep=[0]), KeyError, "no sequence 7"),
    "beyond": (dict(keep=[0, 20]), IndexError, "kept token 20 is not in sequence 0, which has 20"),
    "negative": (dict(keep=[-1]), IndexError, "kept token -1"),
    "order": (dict(keep=[3, 2]), ValueError, "ascending order, got 2 after 3"),
    "twice": (dict(keep=[3, 3]), ValueError, "ascending order, got 3 after 3"),
    "mask": (dict(keep=[True] * 19), ValueError, "mask of 19 tokens; the sequence has 20"),
    "matrix": (dict(keep=[[0, 1]]), ValueError, "one dimension, got 2"),
    "none": (dict(keep=None), TypeError, "a sequence of indices or booleans, got None"),
    "floats": (dict(keep=[0.5]), ValueError, "indices or booleans, got float64"),
    "no rope": (dict(keep=[1], rerotate=True), NotImplementedError, "created without rope"),
    "full": (dict(keep=KEEP), kvctl.OutOfPagesError, "evict needs 2 pages and 0 of 6 are free"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_is_refused_and_changes_nothing(name: str) -> None:
    arguments, error, message = REFUSALS[name]
    cache = make_cache(max_total_tokens=24)
    cache.add_sequence(0)
    step(cache, 0, range(20))
    cache.fork_sequence(0, 1)
    cache.add_sequence(2)
    step(cache, 2, range(3))
    before = kv(cache, 0)
    with pytest.raises(error, match=message):
        cache.evict(**({"seq_id": 0} | arguments))
    assert cache.sequence_length(0) == 20
    np.testing.assert_array_equal(kv(cache, 0), before)
    assert cache.num_available_pages == 0


def test_no_eviction_within_a_step() -> None:
    cache = make_cache()
    cache.add_sequence(0)
    step(cache, 0, range(4))
    cache.begin_forward([0], [1])
    with pytest.raises(RuntimeError, match="between begin_forward and end_forward"):
        cache.evict(0, [0])
    cache.abort()


def test_pending_nodes_that_a_window_let_go_once_committed_do_not_come_back() -> None:
    cache = make_cache(page_size=2)
    cache.add_sequence(0)
    step(cache, 0, range(6), pending=True)
    before = cache.checkpoint(0)
    cache.commit([0], [[0, 1, 2, 3]])
    cache.enable_sliding_window(0, 3, horizon=2)
    step(cache, 0, range(4))  # tokens 0 and 1, nodes of the checkpoint, are gone
    cache.evict(0, [])
    with pytest.raises(ValueError, match="would show tokens of sequence 0 that its sliding window"):
        cache.rollback(0, before)
    assert cache.sequence_length(0) == 0
    step(cache, 0, [1, 2])


@pytest.mark.parametrize("inline", [False, True])
def test_rerotated_under_a_window_set_through_tvm(inline: bool) -> None:
    """The window goes on from there: its sinks are the first tokens that were kept."""
    cache = make_cache(rope=Rope(inline=inline))
    cache.add_sequence(0)
    enable = tvm_ffi.get_global_func("vm.builtin.attention_kv_cache_enable_sliding_window_for_seq")
    enable(cache, 0, 8, 2)
    step(cache, 0, range(40))
    cache.evict(0, [0, 1, 5, 7], rerotate=True)  # of the tokens 0, 1, 34, ..., 39
    tokens = [0, 1, 37, 39]
    for token in range(50, 65):
        tokens.append(token)
        held = tokens if len(tokens) <= 9 else [*tokens[:2], *tokens[-7:]]
        exact = attention(held, list(range(len(held))), 1, Rope())
        np.testing.assert_allclose(step(cache, 0, [token]), exact, atol=3e-6)
        cache.debug_poison()

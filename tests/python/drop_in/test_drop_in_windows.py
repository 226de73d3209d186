"""Sliding windows behind ``kvctl.install()``: the same calls, the same answers as TVM's cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import kvctl
from builtin_cache import Config, kvctl_cache
from cache_pair import FORMS, Pair


@pytest.mark.parametrize("rope", ["none", "normal", "inline"])
@pytest.mark.parametrize("sinks", [0, 4, 20])
def test_a_window_on_a_sequence(sinks: int, rope: str) -> None:
    """Decoding past the window: a token sees the sinks, moved up to it, the window, and itself.

    A cache that may have windows rotates inline, whatever it was told.
    """
    pair = Pair(Config(sliding_window=True, rope=rope))
    pair.both("add", 0, 1)
    pair.both("enable_window", 0, 32, sinks)
    pair.forward({0: 7, 1: 3})
    for _ in range(80):
        pair.forward({0: 1, 1: 1})
    pair.both("remove", 0)
    pair.forward({1: 1})
    pair.both("remove", 1)
    assert pair.both("empty")


@pytest.mark.parametrize("form", FORMS[1:])
def test_every_form_of_a_window(form: Config) -> None:
    """With another base of the rotation, whose every element then matters."""
    pair = Pair(replace(form, sliding_window=True, rope="normal", rope_theta=50.0))
    pair.both("add", 0)
    pair.both("enable_window", 0, 24, 5)
    for _ in range(50):
        pair.forward({0: 1})


def test_a_chunk_within_the_window_and_a_pop_before_it_is_full() -> None:
    pair = Pair(Config(sliding_window=True, rope="inline"))
    pair.both("add", 0)
    pair.both("enable_window", 0, 40, 3)
    pair.forward({0: 20})
    pair.both("popn", 0, 6)
    pair.forward({0: 9})
    pair.both("popn", 0, 2)
    for _ in range(40):
        pair.forward({0: 1})


def test_a_fork_of_the_sinks_has_no_window() -> None:
    """TVM lets a window be forked within its sinks, and the child has none.

    Behind the first page it lets it as well, and then fails to slide the parent further.
    """
    pair = Pair(Config(sliding_window=True, rope="inline"))
    pair.both("add", 0)
    pair.both("enable_window", 0, 20, 17)
    for _ in range(30):
        pair.forward({0: 1})
    pair.both("fork", 0, 1, 12)
    pair.both("fork", 0, 2, 7)
    for _ in range(30):
        pair.forward({0: 1, 2: 1, 1: 1})


@pytest.mark.parametrize("rope", ["none", "normal"])
def test_windows_on_some_layers(rope: str) -> None:
    """Prefill and decode; a second chunk is left out, of which TVM's kernel can make NaN."""
    pair = Pair(Config(sliding_layers=(1,), rope=rope))
    pair.both("add", 0, 1)
    pair.forward({0: 20, 1: 5})
    for _ in range(30):
        pair.forward({0: 1, 1: 1})
    pair.both("popn", 0, 4)
    pair.forward({0: 1})


def test_sinks_in_another_place_are_noticed() -> None:
    """The negative control: kvctl's own windows leave the sinks where they are unless told so."""
    pair = Pair(Config(sliding_window=True, rope="inline"))
    handle = kvctl.PagedKVCache.wrap(pair.other.handle)
    for seq_id, renumber in ((0, True), (1, False)):
        pair.tvm.add(seq_id)
        pair.tvm.enable_window(seq_id, 20, 4)
        handle.add_sequence(seq_id)
        handle.enable_sliding_window(seq_id, 17, sinks=4, renumber_sinks=renumber)
    for _ in range(40):
        token = pair.qkv(1)
        same, other = (
            np.abs(pair.tvm.forward([i], [token])[0] - pair.other.forward([i], [token])[0]).max()
            for i in (0, 1)
        )
        assert same < 2e-5
    assert other > 0.01
    assert pair.tvm.length(0) == 20 and pair.other.length(0) == 40


def test_sinks_cannot_be_renumbered_without_rope() -> None:
    cache = kvctl.PagedKVCache.wrap(kvctl_cache(Config()).handle)
    cache.add_sequence(0)
    with pytest.raises(ValueError, match="does not rotate"):
        cache.enable_sliding_window(0, 8, sinks=2, renumber_sinks=True)


def test_a_window_is_saved_with_its_ways(tmp_path: Path) -> None:
    """What TVM's function set goes on as it was in another cache."""
    caches = [kvctl_cache(Config(sliding_window=True, rope="inline")) for _ in range(2)]
    handles = [kvctl.PagedKVCache.wrap(cache.handle) for cache in caches]
    caches[0].add(0)
    caches[0].enable_window(0, 20, 4)
    rng = np.random.default_rng(0)
    for _ in range(120):  # far enough for pages to be evicted
        caches[0].forward([0], [rng.standard_normal((2, 1, 8, 64), dtype=np.float32)])
    handles[0].save_sequence(0, tmp_path / "sequence")
    handles[1].load_sequence(0, tmp_path / "sequence")
    assert caches[1].length(0) == 20
    token = rng.standard_normal((2, 1, 8, 64), dtype=np.float32)
    one, other = (cache.forward([0], [token])[0] for cache in caches)
    np.testing.assert_array_equal(one, other)
    for part, again in zip(caches[0].get_kv(0), caches[1].get_kv(0), strict=True):
        np.testing.assert_array_equal(part, again)

"""Behind ``kvctl.install()`` both caches give the same answers to the same calls.

Every test drives TVM's cache and kvctl's through TVM's functions with the same data and compares
what comes back. What TVM gets wrong is left to test_tvm_defects.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from builtin_cache import Config, compiler_or_skip, kvctl_cache, tvm_cache
from cache_pair import FORMS, Pair


def a_serving_day(pair: Pair) -> None:
    """Prefill, decode, fork on and off a page boundary, pop, branch, remove."""
    assert pair.both("empty")
    pair.both("free_pages")
    pair.both("add", 0, 1, 7)
    pair.forward({0: 5, 7: 33, 1: 16})
    pair.both("free_pages")
    pair.forward({7: 1, 0: 1})
    pair.forward({0: 1, 1: 1, 7: 1})
    pair.both("fork", 7, 2, 32)  # on a page boundary
    pair.both("fork", 7, 3, 20)
    pair.both("fork", 1, 4)
    pair.both("fork", 0, 5, 0)
    pair.forward({5: 4, 2: 1})
    pair.forward({seq_id: 1 for seq_id in (3, 7, 4, 2, 1)})
    pair.both("popn", 7, 3)
    pair.both("popn", 3, 9)
    pair.both("popn", 2, 0)
    pair.forward({7: 2, 3: 18, 2: 1})
    pair.look(0, 1, 2, 3, 4, 5, 7)
    pair.both("remove", 7)
    pair.forward({2: 1, 3: 1})
    pair.look(0, 1, 2, 3, 4, 5)
    for seq_id in (0, 1, 2, 3, 4, 5):
        pair.both("remove", seq_id)
    assert pair.both("empty")
    pair.both("free_pages")
    pair.both("add", 3)
    pair.forward({3: 40})
    pair.both("clear")
    assert pair.both("empty")
    pair.both("free_pages")


def without_a_commit(pair: Pair) -> None:
    """A chain begun without parents and taken back with popn."""
    pair.both("add", 0)
    pair.forward({0: 19})
    pair.forward({0: 5})
    pair.both("popn", 0, 4)
    pair.forward({0: 1})


@pytest.mark.parametrize("rope", ["none", "normal", "inline"])
@pytest.mark.parametrize("form", FORMS)
def test_a_serving_day(form: Config, rope: str) -> None:
    a_serving_day(Pair(replace(form, rope=rope)))


@pytest.mark.parametrize("rope", ["none", "normal"])  # TVM refuses trees with inline rope
@pytest.mark.parametrize("form", FORMS)
def test_speculation(form: Config, rope: str) -> None:
    pair = Pair(replace(form, rope=rope))
    pair.both("add", 0, 1)
    pair.forward({0: 19, 1: 6})
    pair.forward({0: 4, 1: 4}, [[-1, 0, 1, 2], [-1, 0, 1, 2]])
    pair.both("commit", [0, 1], [1, 3])
    pair.look(0, 1)
    pair.forward({0: 5, 1: 3}, [[-1, 0, 0, 1, 2], [-1, 0, 0]])
    pair.both("commit", [0, 1], [4, 2])
    pair.look(0, 1)
    pair.forward({0: 3, 1: 3}, [[-1, 0, 0], [-1, 0, 0]])
    pair.both("commit", [0, 1], [-1, -1])
    pair.forward({0: 1, 1: 1})


@pytest.mark.parametrize("rope", ["none", "normal", "inline"])
def test_a_chain_taken_back_without_a_commit(rope: str) -> None:
    without_a_commit(Pair(Config(rope=rope)))


def test_deep_forks() -> None:
    """More generations than TVM has depths for; every one of them goes on."""
    pair = Pair(Config(max_sequences=12, max_total_tokens=1024))
    pair.both("add", 0)
    pair.forward({0: 17})
    for child in range(1, 9):
        pair.both("fork", child - 1, child)
        pair.forward({child: 17})
    pair.forward({seq_id: 1 for seq_id in (8, 3, 0, 5, 1)})


def test_softmax_scale() -> None:
    pair = Pair(Config())
    pair.both("add", 0)
    pair.both("begin", [0], [6])
    pair.both("attention", 0, pair.qkv(6)[0], 0.3)
    pair.both("attention", 1, pair.qkv(6)[1], 1.0)


def test_rows_beyond_the_step_are_ignored() -> None:
    """Models pad: TVM reads and writes as many rows as the step has."""
    pair = Pair(Config())
    pair.both("add", 0)
    pair.both("begin", [0], [3])
    for layer in range(2):
        qkv = pair.qkv(5)[layer]
        expected = pair.tvm.attention(layer, qkv)[:3]
        pair.same("padded rows", pair.other.attention(layer, qkv)[:3], expected)
    pair.both("end")
    pair.look(0)


def test_a_twenty_ninth_argument_is_allowed() -> None:
    compiler_or_skip()
    cache = kvctl_cache(Config(), None)
    cache.add(0)
    cache.forward([0], [np.zeros((2, 3, 8, 64), np.float32)])
    assert cache.length(0) == 3


def test_peer_tvm_beside_itself() -> None:
    """The negative control: two caches of TVM's agree, and other data is noticed."""
    a_serving_day(Pair(Config(), other=tvm_cache))
    pair = Pair(Config(), other=tvm_cache)
    pair.both("add", 0)
    pair.tvm.forward([0], [pair.qkv(3)])
    pair.other.forward([0], [pair.qkv(3)])
    with pytest.raises(AssertionError, match="K"):
        pair.look(0)

"""A commit keeps a path of a tree, unless it asks for any nodes: other K and V saw what is gone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kvctl import Mask, PagedKVCache
from small_cache import kv, make_cache, step


def grown(*rounds: list[int]) -> PagedKVCache:
    cache = make_cache()
    cache.add_sequence(0)
    step(cache, 0, range(3))
    for number, parents in enumerate(rounds, 1):
        step(cache, 0, range(10 * number, 10 * number + len(parents)), mask=Mask.tree(parents))
    return cache


@pytest.mark.parametrize(
    ("rounds", "kept", "sentence"),
    [
        (
            [[-1, 0, 0, 2]],
            [0, 1, 3],
            "kept node 3 of sequence 0 hangs on node 2, and the one kept before it is node 1",
        ),
        ([[-1, 0], [0, 2]], [0, 1, 3], "kept node 3 .* hangs on node 2, .* before it is node 1"),
        ([[-1, -1], [1]], [0, 2], "kept node 2 .* hangs on node 1, .* before it is node 0"),
    ],
    ids=["an uncle", "an uncle of an earlier round", "under another root"],
)
def test_kept_nodes_of_a_tree_are_a_path(
    rounds: list[list[int]], kept: list[int], sentence: str
) -> None:
    cache = grown(*rounds)
    before, pages = kv(cache, 0), cache.num_available_pages
    with pytest.raises(ValueError, match=f"{sentence}; keep a path .* any nodes by name"):
        cache.commit([0], [kept])
    assert np.array_equal(kv(cache, 0), before)
    assert (cache.pending_length(0), cache.num_available_pages) == (sum(map(len, rounds)), pages)
    cache.commit([0], [kept], any_nodes=True)
    assert np.array_equal(kv(cache, 0)[:, :, 3:], before[:, :, [3 + node for node in kept]])


def test_one_wrong_sequence_of_a_batch_changes_none() -> None:
    cache = grown([-1, 0, 0, 2])
    cache.add_sequence(1)
    step(cache, 1, range(2), mask=Mask.tree([-1, 0]))
    with pytest.raises(ValueError, match="kept node 3 of sequence 0"):
        cache.commit([1, 0], [[0, 1], [0, 1, 3]])
    assert (cache.pending_length(0), cache.pending_length(1)) == (4, 2)
    cache.commit([1, 0], [[0, 1], [0, 2, 3]])
    assert (cache.sequence_length(0), cache.sequence_length(1)) == (6, 2)


def test_paths_are_known_after_popn_fork_and_rollback() -> None:
    cache = grown([-1, 0, 0], [2, 3])
    before = cache.checkpoint(0)
    cache.fork_sequence(0, 1)
    cache.popn(0, 2)
    step(cache, 0, [30], mask=Mask.tree([1]))
    with pytest.raises(ValueError, match="kept node 3 of sequence 0 hangs on node 1"):
        cache.commit([0], [[0, 2, 3]])
    cache.commit([0], [[0, 1, 3]])
    cache.rollback(0, before)
    for seq_id in (0, 1):
        with pytest.raises(ValueError, match=f"kept node 3 of sequence {seq_id} hangs on node 2"):
            cache.commit([seq_id], [[0, 1, 3]])
        cache.commit([seq_id], [[0, 2, 3, 4]])
    assert np.array_equal(kv(cache, 0), kv(cache, 1))


def test_rows_under_a_mask_that_is_no_tree_have_no_path() -> None:
    """Such a mask chose what each row sees: lookahead decoding keeps a candidate's rows."""
    cache = grown()
    sees = np.eye(5, dtype=bool)
    sees[:, 0] = True
    sees[4, 3] = True
    step(cache, 0, range(5), mask=Mask.dense(sees), positions=[3, 4, 4, 4, 5], pending=True)
    cache.commit([0], [[0, 3, 4]])
    assert cache.sequence_length(0) == 6


@pytest.mark.parametrize("mask", [None, Mask.causal()], ids=["by default", "by name"])
def test_a_causal_row_has_seen_every_row_before_it(mask: Any) -> None:
    cache = grown()
    step(cache, 0, range(3), mask=mask, positions=[3, 4, 4], pending=True)
    with pytest.raises(ValueError, match=r"kept node 2 .* hangs on node 1, .* is node 0"):
        cache.commit([0], [[0, 2]])
    cache.commit([0], [[0, 1]])


def test_a_node_below_rows_under_a_mask_has_seen_them_all() -> None:
    cache = grown()
    rows = Mask.dense(np.tri(2, dtype=bool))
    step(cache, 0, range(2), mask=rows, positions=[3, 3], pending=True)
    step(cache, 0, [5], mask=Mask.tree([1]), positions=[4])
    with pytest.raises(ValueError, match=r"kept node 2 .* a path of 2 nodes, of which 1 are kept"):
        cache.commit([0], [[1, 2]])
    cache.commit([0], [[1, 2]], any_nodes=True)

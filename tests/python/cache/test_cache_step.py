"""A step as a whole: what ends it, and what a step that leaves layers out may still do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kvctl import Mask, PagedKVCache

LAYERS, HEADS, DIM = 3, 2, 8


def make(**changes: Any) -> PagedKVCache:
    sizes: dict[str, Any] = {
        "num_layers": LAYERS,
        "num_qo_heads": HEADS,
        "num_kv_heads": HEADS,
        "head_dim": DIM,
        "max_total_tokens": 64,
        "page_size": 4,
    }
    cache = PagedKVCache.create(**(sizes | changes))
    cache.add_sequence(0)
    return cache


def attend(cache: PagedKVCache, layers: Any, count: int) -> None:
    rng = np.random.default_rng(count)
    for layer in layers:
        shape = (count, 3 * HEADS, DIM)
        cache.attention(layer, rng.standard_normal(shape, dtype=np.float32))


def partial(cache: PagedKVCache, layers: Any, count: int, **options: Any) -> None:
    with cache.forward([0], [count], **options):
        attend(cache, layers, count)


def test_a_layer_left_out_is_named_and_the_step_can_go_on() -> None:
    cache = make()
    cache.begin_forward([0], [2])
    attend(cache, [0, 2], 2)
    with pytest.raises(RuntimeError, match="layer 1 was not attended in this step"):
        cache.end_forward()
    assert cache.in_forward
    attend(cache, [1], 2)
    cache.end_forward()
    assert cache.sequence_length(0) == 2
    assert np.isfinite(np.from_dlpack(cache.get_kv(0)[0])).all()


def test_a_context_that_leaves_a_layer_out_takes_its_step_back() -> None:
    cache = make()
    partial(cache, range(LAYERS), 2)
    with pytest.raises(RuntimeError, match="layer 2 was not attended"):
        partial(cache, range(LAYERS - 1), 3)
    assert not cache.in_forward
    assert cache.sequence_length(0) == 2
    partial(cache, range(LAYERS), 3)
    assert cache.sequence_length(0) == 5


def test_a_step_without_attention_moves_the_books_alone() -> None:
    cache = make()
    partial(cache, [], 3)
    assert cache.sequence_length(0) == 3
    partial(cache, [], 2, mask=Mask.tree([-1, 0]))
    cache.commit([0], [[0, 1]])
    assert cache.sequence_length(0) == 5


def test_pending_tokens_of_a_part_of_the_layers_can_be_dropped_but_not_committed() -> None:
    cache = make()
    partial(cache, range(LAYERS), 1)
    partial(cache, range(LAYERS), 2, mask=Mask.tree([-1, 0]))
    partial(cache, [0], 2, mask=Mask.tree([-1, 0, 1, 2]))  # an early exit drafts two more
    before = cache.checkpoint(0)
    cache.fork_sequence(0, 1)
    for seq_id in (0, 1):
        with pytest.raises(ValueError, match=r"kept node 2 .* left layers out"):
            cache.commit([seq_id], [[0, 1, 2]])
        assert cache.pending_length(seq_id) == 4
    # Neither can what came after them, which may have attended to what is not there.
    partial(cache, range(LAYERS), 1, mask=Mask.tree([-1, 0, 1, 2, 1]))
    with pytest.raises(ValueError, match=r"kept node 4 .* node 2 was added"):
        cache.commit([0], [[0, 1, 4]])
    # Dropped and forwarded through all layers they are as good as any.
    cache.popn(0, 3)
    partial(cache, range(LAYERS), 2, mask=Mask.tree([-1, 0, 1, 2]))
    cache.commit([0], [[0, 1, 2, 3]])
    assert cache.sequence_length(0) == 5
    cache.rollback(0, before)
    with pytest.raises(ValueError, match="left layers out"):
        cache.commit([0], [[0, 1, 2]])
    cache.commit([0], [[0, 1]])
    cache.commit([1], [[]])
    assert (cache.sequence_length(0), cache.sequence_length(1)) == (3, 1)


def test_an_aborted_part_leaves_nothing_behind() -> None:
    cache = make()
    partial(cache, range(LAYERS), 1, mask=Mask.tree([-1]))
    cache.begin_forward([0], [1], mask=Mask.tree([-1, 0]))
    attend(cache, [1], 1)
    cache.abort()
    partial(cache, range(LAYERS), 1, mask=Mask.tree([-1, 0]))
    cache.commit([0], [[0, 1]])
    assert cache.sequence_length(0) == 2

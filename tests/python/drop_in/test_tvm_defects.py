"""What TVM's own cache gets wrong, each case by name: kvctl's cache must be right in all of them.

Each case is driven through TVM's own functions on both caches. The tests of the peer document that
the case bites on the pinned release: one that fails after an upgrade means that TVM was mended.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from builtin_cache import (
    BuiltinCache,
    Config,
    Shadowed,
    Wrong,
    compiler_or_skip,
    kvctl_cache,
    tvm_cache,
)

Case = Callable[[Callable[[Config], BuiltinCache]], None]


def t1_a_chain_at_the_end_skips_compaction(create: Callable[[Config], BuiltinCache]) -> None:
    both = Shadowed(create(Config()))
    both.add(0, 1)
    both.forward({0: 5, 1: 7})
    both.forward({0: [-1, 0, 0, 2], 1: [-1, 0, 1, 2]})  # sequence 1: a tree that is a chain
    both.commit({0: 3, 1: 2})
    both.check()


def t2_commit_in_another_order(create: Callable[[Config], BuiltinCache]) -> None:
    both = Shadowed(create(Config()))
    both.add(0, 1)
    both.forward({0: 5, 1: 7})
    both.forward({0: [-1, 0, 0, 2], 1: [-1, -1, 1, 2]})
    both.commit({1: 2, 0: 0})
    both.check()


def t2_commit_of_a_subset(create: Callable[[Config], BuiltinCache]) -> None:
    both = Shadowed(create(Config()))
    both.add(0, 1)
    both.forward({0: 5, 1: 7})
    both.forward({0: [-1, 0, 0, 2], 1: [-1, -1, 1, 2]})
    both.commit({1: 2})
    both.check(1)
    both.commit({0: 3})
    both.check()


def t3_a_tree_grown_over_rounds(create: Callable[[Config], BuiltinCache]) -> None:
    both = Shadowed(create(Config()))
    both.add(0)
    both.forward({0: 5})
    both.forward({0: [-1, 0, 0]})
    both.forward({0: [2, 2, 1]})
    both.forward({0: [4]})
    both.commit({0: 6})  # 0, 2, 4, 6
    both.check()


def t4_two_rounds_on_forked_and_unforked(create: Callable[[Config], BuiltinCache]) -> None:
    both = Shadowed(create(Config()))
    both.add(0, 2)
    both.forward({0: 40, 2: 9})
    both.fork(0, 1, 36)
    both.forward({2: [-1, 0, 0], 1: [-1, -1, 0]})
    both.forward({2: [2, 2], 1: [1, 2]})


def _decode_in_window(both: Shadowed, past: list[np.ndarray], what: str) -> None:
    """Decode one token of sequence 0, which is to see exactly this past and itself."""
    new = both.qkv(1)
    (got,) = both.cache.forward([0], [new])
    alone = Shadowed(both.cache)
    alone.model.add_sequence(0)
    kv = np.concatenate([*past, new], axis=1)
    alone.model.begin_forward([0], [kv.shape[1]])
    for layer in range(kv.shape[0]):
        expected = alone.model.attention(layer, kv[layer])[-1:]
        both.close(got[layer], expected, what)


def t5_popn_after_the_window_slid(create: Callable[[Config], BuiltinCache]) -> None:
    both = Shadowed(create(Config(sliding_window=True)))
    cache = both.cache
    cache.add(0)
    cache.enable_window(0, 32, 0)
    tokens = [both.qkv(1) for _ in range(48)]
    for token in tokens:
        cache.forward([0], [token])
    _decode_in_window(both, tokens[-32:], "attention in the window")
    cache.popn(0, 9)  # that one, and eight more
    _decode_in_window(both, tokens[8:40], "attention after popn")


def t6_popn_across_a_shared_prefix(create: Callable[[Config], BuiltinCache]) -> None:
    both = Shadowed(create(Config(sliding_window=True)))
    both.add(0)
    both.forward({0: 32})
    both.fork(0, 1, 32)
    both.cache.enable_window(1, 40, 0)
    both.forward({1: 4})
    both.popn(1, 6)
    both.forward({1: 2})
    both.check()


def out_of_pages_leaves_the_cache_as_it_was(create: Callable[[Config], BuiltinCache]) -> None:
    both = Shadowed(create(Config(max_total_tokens=48)))
    both.add(0, 1)
    both.forward({0: 20, 1: 10})
    with pytest.raises(Exception, match="page"):
        both.cache.begin([0, 1], [1, 60])
    both.check()
    both.forward({0: 3})
    both.check()


def a_tree_of_more_than_256_nodes(create: Callable[[Config], BuiltinCache]) -> None:
    both = Shadowed(create(Config(prefill_chunk_size=320)))
    both.add(0)
    both.forward({0: 5})
    both.forward({0: [-1, *((i - 1) // 2 for i in range(1, 300))]})
    both.commit({0: 299})
    both.check()


def a_tree_on_a_windowed_cache(create: Callable[[Config], BuiltinCache]) -> None:
    both = Shadowed(create(Config(sliding_window=True)))
    both.add(0)
    both.forward({0: 5})
    both.forward({0: [-1, 0, 0, 2]})
    both.commit({0: 3})
    both.check()


def a_tree_with_inline_rope(create: Callable[[Config], BuiltinCache]) -> None:
    both = Shadowed(create(Config(rope="inline")))
    both.add(0)
    both.forward({0: 5})
    both.forward({0: [-1, 0, 0, 2]})
    both.commit({0: 3})
    both.check()
    both.forward({0: 1})


def popn_on_an_uncommitted_tree(create: Callable[[Config], BuiltinCache]) -> None:
    both = Shadowed(create(Config()))
    both.add(0)
    both.forward({0: 5})
    both.forward({0: [-1, 0, 0]})
    both.popn(0, 3)
    both.check()
    both.forward({0: 2})
    both.check()


def an_unknown_sequence_is_a_key_error(create: Callable[[Config], BuiltinCache]) -> None:
    cache = create(Config())
    for call in (
        lambda: cache.remove(3),
        lambda: cache.popn(3, 1),
        lambda: cache.fork(3, 4),
        lambda: cache.begin([3], [1]),
    ):
        try:
            call()
        except KeyError:
            continue
        except Exception as error:
            raise Wrong(f"{type(error).__name__} for a mistake of the user") from error


def a_chunk_beyond_the_window(create: Callable[[Config], BuiltinCache]) -> None:
    both = Shadowed(create(Config(sliding_window=True, rope="inline")))
    cache, tokens = both.cache, both.qkv(30)
    outputs = []
    for seq_id, cuts in enumerate(([20, 10], [1] * 30)):
        cache.add(seq_id)
        cache.enable_window(seq_id, 12, 2)
        pieces = np.split(tokens, np.cumsum(cuts)[:-1], axis=1)
        outputs.append(np.concatenate([cache.forward([seq_id], [p])[0] for p in pieces], axis=1))
    both.close(outputs[0], outputs[1], "a prompt that is cut otherwise")


def positions_in_a_window(create: Callable[[Config], BuiltinCache]) -> None:
    both = Shadowed(create(Config(sliding_window=True)))
    both.cache.add(0)
    both.cache.enable_window(0, 12, 2)
    for position in range(20):
        both.cache.forward([0], [both.qkv(1)])
        if both.cache.positions_seen[0] != position:
            raise Wrong(f"token {position} is at {both.cache.positions_seen[0]}")


def a_fork_of_a_window_that_slid(create: Callable[[Config], BuiltinCache]) -> None:
    both = Shadowed(create(Config(sliding_window=True, rope="inline")))
    cache = both.cache
    cache.add(0, 1)
    for seq_id in (0, 1):
        cache.enable_window(seq_id, 20, 17)
    tokens = [both.qkv(1) for _ in range(35)]
    for token in tokens[:30]:
        cache.forward([0, 1], [token, token])
    cache.fork(0, 2, 16)
    for token in tokens[30:]:
        one, other = cache.forward([0, 1], [token, token])
        both.close(one, other, "the sequence that was forked")


def layer_windows_with_inline_rope(create: Callable[[Config], BuiltinCache]) -> None:
    both = Shadowed(create(Config(sliding_layers=(1,), rope="inline", rope_theta=500.0)))
    both.add(0)
    both.forward({0: 9})
    both.forward({0: 1})


def cross_attention_of_a_layer_with_a_window(create: Callable[[Config], BuiltinCache]) -> None:
    both = Shadowed(create(Config(sliding_layers=(1,))))
    both.add(0)
    both.forward({0: 9})
    both.cache.begin([0], [2])
    q = both.qkv(2)[0][:, :4]
    outputs = [both.cache.cross_attention(layer, q)[0] for layer in range(2)]
    if not all(np.isfinite(out).all() and out.any() for out in outputs):
        raise Wrong("attention to the past")


def layer_windows_of_a_fork(create: Callable[[Config], BuiltinCache]) -> None:
    both = Shadowed(create(Config(sliding_layers=(0, 1))))  # windows of 32 tokens
    tokens = [both.qkv(1) for _ in range(60)]
    both.cache.add(0, 1)
    for token in tokens[:48]:
        both.cache.forward([0, 1], [token, token])
    both.cache.fork(0, 2, 48)
    for token in tokens[48:]:
        one, other = both.cache.forward([1, 2], [token, token])
        both.close(other, one, "a fork")


# What TVM answers instead: silent corruption is a Wrong, the rest is TVM's own message.
CASES = {
    t1_a_chain_at_the_end_skips_compaction: "K/V of sequence 0 differs",
    t2_commit_in_another_order: "sequence 0: 7 tokens, not 6",
    t2_commit_of_a_subset: "copy_length_indptr|sequence 1",
    t3_a_tree_grown_over_rounds: "Index 2 out of bounds 1",
    t4_two_rounds_on_forked_and_unforked: "attention differs",
    t5_popn_after_the_window_slid: "attention after popn differs",
    t6_popn_across_a_shared_prefix: "only can be forked within sink size",
    out_of_pages_leaves_the_cache_as_it_was: "sequence 0: 21 tokens, not 20",
    a_tree_of_more_than_256_nodes: "exceeds the maximum tree size limit 256",
    a_tree_on_a_windowed_cache: "Tree attention does not support sliding window",
    a_tree_with_inline_rope: "does not support inline RoPE",
    a_chunk_beyond_the_window: "a prompt that is cut otherwise differs",
    positions_in_a_window: "token 13 is at 12",
    a_fork_of_a_window_that_slid: "block.seq_length >= block.sink_length",
    layer_windows_with_inline_rope: "attention differs",
    layer_windows_of_a_fork: "data_ != nullptr",
    cross_attention_of_a_layer_with_a_window: "f_mla_prefill_",
    popn_on_an_uncommitted_tree: "are expected to have their accepted tokens",
    an_unknown_sequence_is_a_key_error: "InternalError for a mistake of the user",
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_kvctl_is_right(case: Case) -> None:
    compiler_or_skip()
    case(kvctl_cache)


@pytest.mark.parametrize(("case", "answer"), CASES.items(), ids=[c.__name__ for c in CASES])
def test_peer_tvm_gets_it_wrong(case: Case, answer: str) -> None:
    compiler_or_skip()
    with pytest.raises(Exception, match=answer):
        case(tvm_cache)


def test_peer_tvm_gets_the_rest_right() -> None:
    """The negative control: without its defects TVM's cache passes the same comparison."""
    compiler_or_skip()
    for rope in ("none", "normal"):
        both = Shadowed(tvm_cache(Config(rope=rope)))
        both.add(0, 1)
        both.forward({0: 5, 1: 20})
        both.fork(1, 2, 18)
        both.forward({2: 1, 0: 1})
        both.forward({0: [-1, 0, 0, 2], 1: [-1, 0, 1, 1]})
        both.commit({0: 3, 1: 3})
        both.check()
        both.popn(1, 5)
        both.forward({1: 1, 0: 1, 2: 1})
        both.check()

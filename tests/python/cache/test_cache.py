"""The paged cache from Python: each operation, each error, state unchanged after errors.

One file, since every operation of the cache is checked by the same helpers.
"""

import gc

import numpy as np
import pytest

import kvctl
from kvctl import Mask, PagedKVCache

LAYERS, QO_HEADS, KV_HEADS, DIM, PAGE = 2, 4, 2, 16, 4


@pytest.fixture
def cache() -> PagedKVCache:
    return make_cache()


def make_cache(**overrides) -> PagedKVCache:
    options = {
        "num_layers": LAYERS,
        "num_qo_heads": QO_HEADS,
        "num_kv_heads": KV_HEADS,
        "head_dim": DIM,
        "max_total_tokens": 64,
        "page_size": PAGE,
        "max_sequences": 8,
        "prefill_chunk_size": 24,
    }
    return PagedKVCache.create(**(options | overrides))


def token_qkv(tokens) -> np.ndarray:
    """Random but reproducible q, k, v of each (token, position-independent) id."""
    rows = [
        np.random.default_rng(t).standard_normal((QO_HEADS + 2 * KV_HEADS, DIM)) for t in tokens
    ]
    return np.stack(rows).astype(np.float32)


def forward(cache, seq_ids, tokens, **options) -> np.ndarray:
    """One step over both layers; returns the outputs of the last."""
    flat = [t for one in tokens for t in one]
    qkv = token_qkv(flat)
    with cache.forward(seq_ids, [len(one) for one in tokens], **options):
        for layer in range(LAYERS):
            out = np.from_dlpack(cache.attention(layer, qkv))
    return out


def values(cache, seq_id) -> np.ndarray:
    """V of layer 0: tells which token lies in which place."""
    return np.from_dlpack(cache.get_kv(seq_id)[1])[0]


def expected_values(tokens) -> np.ndarray:
    return token_qkv(tokens)[:, QO_HEADS + KV_HEADS :]


def assert_holds(cache, seq_id, tokens):
    assert cache.sequence_length(seq_id) == len(tokens)
    np.testing.assert_array_equal(
        values(cache, seq_id), expected_values(tokens) if tokens else values(cache, seq_id)[:0]
    )


def attention_reference(tokens, visible) -> np.ndarray:
    """Float64 attention of every token over the visible ones; visible is (n, n) bool."""
    qkv = token_qkv(tokens).astype(np.float64)
    group = QO_HEADS // KV_HEADS
    out = np.zeros((len(tokens), QO_HEADS, DIM))
    for head in range(QO_HEADS):
        q = qkv[:, head]
        k, v = qkv[:, QO_HEADS + head // group], qkv[:, QO_HEADS + KV_HEADS + head // group]
        scores = np.where(visible, q @ k.T * DIM**-0.5, -np.inf)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        out[:, head] = weights / weights.sum(axis=1, keepdims=True) @ v
    return out


def test_attention_over_a_growing_chain(cache):
    tokens = list(range(20))
    cache.add_sequence(3)
    first = forward(cache, [3], [tokens[:9]])
    rest = forward(cache, [3], [tokens[9:]])
    expected = attention_reference(tokens, np.tril(np.ones((20, 20), bool)))
    np.testing.assert_allclose(np.concatenate([first, rest]), expected, rtol=1e-5, atol=1e-6)


def test_attention_on_a_tree_sees_past_and_ancestors(cache):
    cache.add_sequence(0)
    forward(cache, [0], [[1, 2, 3, 4, 5]])
    parents = [-1, 0, 0, 2, 1]
    out = forward(cache, [0], [[10, 11, 12, 13, 14]], mask=Mask.tree(parents))
    visible = np.zeros((10, 10), bool)
    visible[:, :5] = True
    for node, parent in enumerate(parents):
        visible[5 + node, 5 + node] = True
        if parent >= 0:
            visible[5 + node, 5:] |= visible[5 + parent, 5:]
    expected = attention_reference([1, 2, 3, 4, 5, 10, 11, 12, 13, 14], visible)[5:]
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_pages_of_every_dtype_hold_the_rounded_values(dtype):
    cache = make_cache(dtype=dtype)
    cache.add_sequence(0)
    forward(cache, [0], [[1, 2, 3]])
    np.testing.assert_array_equal(values(cache, 0), expected_values([1, 2, 3]).astype(dtype))


def test_own_rope_rotates_q_and_k():
    cache = make_cache(rope=kvctl.Rope(theta=100.0))
    cache.add_sequence(0)
    forward(cache, [0], [[1, 2, 3]])
    k = np.from_dlpack(cache.get_kv(0)[0])[0]
    plain = token_qkv([1, 2, 3])[:, QO_HEADS : QO_HEADS + KV_HEADS].astype(np.float64)
    angle = np.arange(3)[:, None, None] * 100.0 ** (-np.arange(DIM // 2) / (DIM // 2))
    low, high = plain[..., : DIM // 2], plain[..., DIM // 2 :]
    rotated = np.concatenate(
        [low * np.cos(angle) - high * np.sin(angle), high * np.cos(angle) + low * np.sin(angle)],
        axis=-1,
    )
    np.testing.assert_allclose(k, rotated, rtol=1e-5, atol=1e-6)


def test_popn_takes_back_the_last_tokens(cache):
    cache.add_sequence(0)
    forward(cache, [0], [list(range(10))])
    cache.popn(0, 3)
    assert_holds(cache, 0, list(range(7)))
    assert cache.num_available_pages == 14
    forward(cache, [0], [[50, 51]])
    assert_holds(cache, 0, [*range(7), 50, 51])


def test_popn_drops_pending_nodes_first(cache):
    cache.add_sequence(0)
    forward(cache, [0], [[1, 2, 3]])
    forward(cache, [0], [[10, 11, 12]], mask=Mask.tree([-1, 0, 0]))
    cache.popn(0, 2)
    assert (cache.sequence_length(0), cache.pending_length(0)) == (4, 1)
    cache.popn(0, 2)
    assert_holds(cache, 0, [1, 2])


@pytest.mark.parametrize("position", [-1, 0, 1, 4, 5, 9])
def test_fork_shares_pages_and_then_diverges(cache, position):
    tokens = list(range(9))
    cache.add_sequence(0)
    forward(cache, [0], [tokens])
    free = cache.num_available_pages
    cache.fork_sequence(0, 1, position)
    assert cache.num_available_pages == free
    kept = tokens if position < 0 else tokens[:position]
    forward(cache, [1, 0], [[70, 71], [80]])
    assert_holds(cache, 1, [*kept, 70, 71])
    assert_holds(cache, 0, [*tokens, 80])


def test_a_thousand_forks_cost_one_prefix():
    cache = make_cache(max_sequences=2000)
    cache.add_sequence(0)
    forward(cache, [0], [list(range(24))])
    free = cache.num_available_pages
    for child in range(1, 1001):
        cache.fork_sequence(0, child)
    assert cache.num_available_pages == free
    for child in range(1000):
        cache.remove_sequence(child)
    assert cache.num_available_pages == free
    assert_holds(cache, 1000, list(range(24)))


def test_commit_of_a_mixed_batch_in_another_order(cache):
    """Trees, a chain and a sequence with nothing accepted, committed by id (DESIGN's T1 and T2)."""
    for seq in range(4):
        cache.add_sequence(seq)
    forward(cache, [0, 1, 2, 3], [[1, 2], [3], [4, 5, 6], [7]])
    forward(
        cache,
        [2, 0, 1, 3],
        [[20, 21, 22, 23], [10, 11, 12], [30, 31], [40, 41, 42]],
        mask=[
            Mask.tree([-1, 0, 0, 2]),
            Mask.tree([-1, -1, 1]),
            Mask.tree([-1, 0]),
            Mask.tree([-1, 0, 1]),
        ],
    )
    cache.commit([1, 3], [[0, 1], []])
    cache.commit([0, 2], [[1, 2], [0, 2, 3]])
    assert_holds(cache, 0, [1, 2, 11, 12])
    assert_holds(cache, 1, [3, 30, 31])
    assert_holds(cache, 2, [4, 5, 6, 20, 22, 23])
    assert_holds(cache, 3, [7])


def test_commit_of_forked_pending_trees_writes_into_no_shared_page(cache):
    cache.add_sequence(0)
    forward(cache, [0], [[1, 2]])
    forward(cache, [0], [[10, 11, 12, 13]], mask=Mask.tree([-1, 0, 0, 2]))
    cache.fork_sequence(0, 1)
    cache.commit([0, 1], [[0, 2, 3], [0, 1]])
    assert_holds(cache, 0, [1, 2, 10, 12, 13])
    assert_holds(cache, 1, [1, 2, 10, 11])


def test_tree_grown_over_rounds_commits_any_path(cache):
    cache.add_sequence(0)
    forward(cache, [0], [[1]])
    forward(cache, [0], [[10, 11]], mask=Mask.tree([-1, 0]))
    forward(cache, [0], [[12, 13]], mask=Mask.tree([0, 2]))
    cache.commit([0], [[0, 2, 3]])
    assert_holds(cache, 0, [1, 10, 12, 13])


def test_pending_chain_and_abort(cache):
    cache.add_sequence(0)
    forward(cache, [0], [[1]])
    forward(cache, [0], [[2, 3]], pending=True)
    assert cache.pending_length(0) == 2
    with pytest.raises(ValueError, match="has 2 pending nodes"):
        cache.begin_forward([0], [1])
    cache.abort([0])
    assert_holds(cache, 0, [1])


def test_checkpoint_survives_commit_popn_and_fork(cache):
    cache.add_sequence(0)
    forward(cache, [0], [[1, 2, 3, 4, 5, 6]])
    point = cache.checkpoint(0)
    cache.popn(0, 4)
    forward(cache, [0], [[60, 61, 62]])
    cache.fork_sequence(0, 1)
    forward(cache, [0], [[10, 11, 12]], mask=Mask.tree([-1, 0, 0]))
    cache.commit([0], [[0, 2]])
    assert_holds(cache, 0, [1, 2, 60, 61, 62, 10, 12])
    cache.rollback(0, point)
    assert_holds(cache, 0, [1, 2, 3, 4, 5, 6])
    assert_holds(cache, 1, [1, 2, 60, 61, 62])
    forward(cache, [0], [[90]])
    cache.rollback(0, point)
    assert_holds(cache, 0, [1, 2, 3, 4, 5, 6])


def test_checkpoint_lets_go_of_its_pages(cache):
    cache.add_sequence(0)
    forward(cache, [0], [list(range(16))])
    point = cache.checkpoint(0)
    cache.popn(0, 16)
    assert cache.num_available_pages == 12
    del point
    gc.collect()
    assert cache.num_available_pages == 16


def test_abort_takes_a_step_back(cache):
    cache.add_sequence(0)
    forward(cache, [0], [[1, 2, 3]])
    with pytest.raises(ZeroDivisionError), cache.forward([0], [5]):
        cache.attention(0, token_qkv(range(5)))
        raise ZeroDivisionError
    assert_holds(cache, 0, [1, 2, 3])
    assert cache.num_available_pages == 15


def snapshot(cache):
    ids = [i for i in range(10) if i in cache]
    return (
        {i: (cache.pending_length(i), values(cache, i).tobytes()) for i in ids},
        cache.num_available_pages,
    )


def bad_calls():
    tree = Mask.tree
    return {
        "unknown sequence": (lambda c: c.popn(9, 1), KeyError, "no sequence 9"),
        "add taken": (lambda c: c.add_sequence(0), ValueError, "already has a sequence 0"),
        "add negative": (lambda c: c.add_sequence(-1), ValueError, "must not be negative"),
        "pop past the start": (lambda c: c.popn(0, 7), ValueError, "cannot pop 7 tokens"),
        "pop a huge count": (lambda c: c.popn(0, 2**32 + 1), ValueError, "cannot pop 4294967297"),
        "pop negative": (lambda c: c.popn(0, -1), ValueError, "cannot pop -1"),
        "fork past the end": (lambda c: c.fork_sequence(0, 5, 7), ValueError, "which has 6"),
        "fork onto itself": (lambda c: c.fork_sequence(0, 0), ValueError, "already has"),
        "twice in a batch": (lambda c: c.begin_forward([0, 0], [1, 1]), ValueError, "twice"),
        "no new tokens": (lambda c: c.begin_forward([0], [0]), ValueError, "at least 1"),
        "lengths missing": (lambda c: c.begin_forward([0], [1, 2]), ValueError, "2 append lengths"),
        "larger than the chunk": (
            lambda c: c.begin_forward([0], [25]),
            ValueError,
            "at most 24",
        ),
        "tree larger than the chunk": (
            lambda c: c.begin_forward([0], [25], mask=tree([-1] * 25)),
            ValueError,
            "at most 24",
        ),
        "tree of another size": (
            lambda c: c.begin_forward([0], [3], mask=tree([-1, 0])),
            ValueError,
            "has 2 nodes; it must have one for each of the 3 new",
        ),
        "parent of the future": (
            lambda c: c.begin_forward([0], [2], mask=tree([-1, 1])),
            ValueError,
            "parent",
        ),
        "out of pages": (
            lambda c: c.begin_forward([0, 2, 3], [18, 5, 1]),
            kvctl.OutOfPagesError,
            "needs 7 pages and 5 of 16 are free",
        ),
        "commit an unknown node": (lambda c: c.commit([1], [[3]]), IndexError, "has 3 nodes"),
        "commit no path": (lambda c: c.commit([1], [[1, 2]]), ValueError, "position"),
        "commit one twice": (lambda c: c.commit([1, 1], [[0], [0]]), ValueError, "twice"),
        "commit good and bad": (lambda c: c.commit([1, 0], [[0], [0]]), IndexError, "has 0 nodes"),
        "attention outside a step": (
            lambda c: c.attention(0, token_qkv([1])),
            RuntimeError,
            "between begin_forward and end_forward",
        ),
        "end without begin": (lambda c: c.end_forward(), RuntimeError, "without a begin_forward"),
        "range past the end": (lambda c: c.get_kv(0, 2, 9), IndexError, "which has 6"),
        "abort of a stranger": (lambda c: c.abort([1, 9]), KeyError, "no sequence 9"),
    }


@pytest.mark.parametrize("name", bad_calls())
def test_misuse_is_a_clear_error_and_changes_nothing(name):
    call, error, message = bad_calls()[name]
    cache = make_cache()
    for seq in range(4):
        cache.add_sequence(seq)
    forward(cache, [0, 1], [[1, 2, 3, 4, 5, 6], [7, 8]])
    forward(cache, [1], [[10, 11, 12]], mask=Mask.tree([-1, 0, 0]))
    forward(cache, [2, 3], [list(range(20)), [1, 2]])
    forward(cache, [3], [[3, 4, 5, 6, 7, 8]])
    before = snapshot(cache)
    with pytest.raises(error, match=message):
        call(cache)
    assert snapshot(cache) == before


def window_reference(tokens, size, sinks):
    n = len(tokens)
    row, column = np.mgrid[:n, :n]
    visible = (column <= row) & ((row - column < size) | (column < sinks))
    return attention_reference(tokens, visible)


@pytest.mark.parametrize(("size", "sinks", "horizon"), [(6, 0, 0), (5, 3, 4), (8, 4, 12)])
def test_sliding_window_with_sinks_slides_and_comes_back(size, sinks, horizon):
    cache = make_cache(max_total_tokens=48)
    cache.add_sequence(0)
    cache.enable_sliding_window(0, size, sinks=sinks, horizon=horizon)
    tokens = list(range(100, 200))
    outs = [forward(cache, [0], [tokens[at : at + 5]]) for at in range(0, 100, 5)]
    cache.debug_poison()
    expected = window_reference(tokens, size, sinks)
    np.testing.assert_allclose(np.concatenate(outs), expected, rtol=1e-5, atol=1e-6)
    assert cache.num_available_pages > 0
    point = cache.checkpoint(0)
    for n in (horizon, horizon // 2):
        cache.popn(0, n)
        cut = tokens[: 100 - n]
        again = forward(cache, [0], [[900, 901]])
        np.testing.assert_allclose(
            again, window_reference([*cut, 900, 901], size, sinks)[-2:], rtol=1e-5, atol=1e-6
        )
        if horizon < 2:  # two tokens on, the checkpoint lies behind the horizon
            break
        cache.rollback(0, point)
    with pytest.raises(ValueError, match="rollback horizon is"):
        cache.popn(0, horizon + size + 8)
    with pytest.raises(IndexError, match="evicted by its sliding window"):
        cache.get_kv(0)


def test_sliding_window_with_a_tree_and_a_fork():
    cache = make_cache()
    cache.add_sequence(0)
    cache.enable_sliding_window(0, 6, sinks=2)
    past = list(range(20))
    forward(cache, [0], [past])
    cache.fork_sequence(0, 1)
    out = forward(cache, [0, 1], [[30, 31, 32], [40]], mask=[Mask.tree([-1, 0, 0]), None])
    for row, path in ((0, [30]), (1, [30, 31]), (2, [30, 32]), (3, [40])):
        expected = window_reference(past + path, 6, 2)[-1]
        np.testing.assert_allclose(out[row], expected, rtol=1e-5, atol=1e-6)


def test_layers_with_windows_of_their_own():
    cache = make_cache(layer_windows=[0, 5])
    cache.add_sequence(0)
    tokens = list(range(17))
    qkv = token_qkv(tokens)
    with cache.forward([0], [17]):
        full, sliding = (np.from_dlpack(cache.attention(layer, qkv)) for layer in range(2))
    np.testing.assert_allclose(full, window_reference(tokens, 99, 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sliding, window_reference(tokens, 5, 0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"size": 0}, {"size": 4, "sinks": -1}])
def test_sliding_window_refuses_nonsense(cache, options):
    cache.add_sequence(0)
    with pytest.raises(ValueError, match="sliding window needs a size"):
        cache.enable_sliding_window(0, **options)


def test_tree_growth_takes_new_parents_or_all(cache):
    for seq, second in ((0, [0, 2]), (1, [-1, 0, 0, 2])):
        cache.add_sequence(seq)
        forward(cache, [seq], [[10, 11]], mask=Mask.tree([-1, 0]))
        forward(cache, [seq], [[12, 13]], mask=Mask.tree(second))
        cache.commit([seq], [[0, 2, 3]])
        assert_holds(cache, seq, [10, 12, 13])
    forward(cache, [0], [[20]], mask=Mask.tree([-1]))
    with pytest.raises(ValueError, match="it is pending with parent -1"):
        cache.begin_forward([0], [2], mask=Mask.tree([0, 0, 1]))


def test_rollback_refuses_strangers(cache):
    cache.add_sequence(0)
    cache.add_sequence(1)
    point = cache.checkpoint(0)
    with pytest.raises(ValueError, match="one of sequence 0"):
        cache.rollback(1, point)
    other = make_cache()
    other.add_sequence(0)
    with pytest.raises(ValueError, match="another cache"):
        other.rollback(0, point)
    cache.remove_sequence(0)
    cache.add_sequence(0)
    with pytest.raises(ValueError, match="has been removed"):
        cache.rollback(0, point)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"num_qo_heads": 3}, "multiple of num_kv_heads, got 3 and 2"),
        ({"head_dim": 12}, "multiple of 8"),
        ({"page_size": 0}, "page_size must be at least 1"),
        ({"max_total_tokens": 0}, "max_total_tokens must be at least 1"),
        ({"max_total_tokens": 2**40}, "larger than"),
    ],
)
def test_create_refuses_nonsense(options, message):
    with pytest.raises(ValueError, match=message):
        make_cache(**options)


def test_create_refuses_integer_pages():
    with pytest.raises(TypeError, match="bfloat16 or int8, or float8_e4m3fn on CUDA, got int16"):
        make_cache(dtype="int16")


def test_max_sequences_is_kept(cache):
    for seq in range(8):
        cache.add_sequence(seq)
    with pytest.raises(ValueError, match="max_sequences"):
        cache.add_sequence(8)


def test_import_leaves_tvm_alone():
    import subprocess
    import sys

    script = "import sys, kvctl; kvctl.PagedKVCache; print('tvm' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"

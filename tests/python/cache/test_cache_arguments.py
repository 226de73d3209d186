"""What a careless caller hands to a paged cache: refused by name, the cache as it was."""

import numpy as np
import pytest

import kvctl
from kvctl import Mask, PagedKVCache

QO_HEADS, KV_HEADS, DIM, PAST = 4, 2, 16, 6


def make_cache(**overrides):
    options = dict(num_layers=1, num_qo_heads=QO_HEADS, num_kv_heads=KV_HEADS, head_dim=DIM)
    return PagedKVCache.create(**(options | dict(max_total_tokens=64) | overrides))


def random_qkv(n):
    return np.random.default_rng(n).standard_normal((n, QO_HEADS + 2 * KV_HEADS, DIM), np.float32)


@pytest.fixture
def cache():
    """A cache with six committed tokens, and a tree of four pending ones behind them."""
    cache = make_cache()
    cache.add_sequence(0)
    with cache.forward([0], [PAST]):
        cache.attention(0, random_qkv(PAST))
    with cache.forward([0], [4], mask=Mask.tree([-1, 0, 0, 2])):
        cache.attention(0, random_qkv(4))
    return cache


def state(cache):
    kv = [np.from_dlpack(part).tobytes() for part in cache.get_kv(0)]
    return cache.in_forward, cache.sequence_length(0), cache.pending_length(0), kv


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 2**40}, "the cache would take .* GiB is all there is"),
        ({"num_layers": 2**25}, "GiB is all there is"),
        ({"max_total_tokens": 2**31 - 16, "num_layers": 64}, "GiB is all there is"),
        ({"max_total_tokens": 2**63 - 1}, "is larger than"),
        ({"max_total_tokens": 0}, "max_total_tokens must be at least 1, got 0"),
        ({"max_sequences": -1}, r"max_sequences must be in \[0, 2\^31\)"),
        ({"max_sequences": 2**40}, "max_sequences .* got 1099511627776"),
        (
            {"prefill_chunk_size": 2**40},
            "prefill_chunk_size must be less than .* got 1099511627776",
        ),
        ({"num_qo_heads": 2**31}, r"num_qo_heads \* head_dim must be less"),
        ({"device": "cpu:7"}, "the CPU is device 0, got 7"),
    ],
)
def test_sizes_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        make_cache(**options)


def test_options_of_other_types():
    with pytest.raises(TypeError, match='dtype must be a name such as "float32", got'):
        make_cache(dtype=np.float32)
    with pytest.raises(TypeError, match=r"rope must be a kvctl\.Rope or None, got float"):
        make_cache(rope=10000.0)
    with pytest.raises(TypeError, match="layer_windows must be integers, got float64"):
        make_cache(layer_windows=[1.5])
    with pytest.raises(ValueError, match="theta must be positive and finite, got 0"):
        kvctl.Rope(theta=0)
    with pytest.raises(ValueError, match="scale must be finite, got nan"):
        kvctl.Rope(scale=float("nan"))


@pytest.mark.parametrize("owner", [PagedKVCache, kvctl.RecurrentState])
def test_none_is_no_object(owner):
    with pytest.raises(TypeError, match="None"):
        owner.wrap(None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.commit([0], [[False, True]]), "kept nodes must be integers, got bool"),
        (lambda c: c.commit([0], [[0, 2.9]]), "kept nodes must be integers, got float64"),
        (lambda c: c.commit([0], ["02"]), "kept nodes must be integers"),
        (lambda c: c.commit([0.2], [[0]]), "seq_ids must be integers"),
        (lambda c: c.commit([0], [0]), "kept nodes must be a sequence of integers, got 0"),
        (lambda c: c.abort([0.5]), "seq_ids must be integers"),
        (lambda c: c.abort(0), "seq_ids must be a sequence of integers, got 0"),
        (lambda c: c.begin_forward([0], [1.5], pending=True), "append_lengths must be integers"),
        (lambda c: c.begin_forward(["0"], [1], pending=True), "seq_ids must be integers"),
        (
            lambda c: c.begin_forward([0], [1], positions=[7.5], pending=True),
            "positions must be integers",
        ),
        (
            lambda c: c.begin_forward([0], [1], mask=np.ones((1, 11), bool)),
            r"a mask must be a kvctl\.Mask .* got ndarray; Mask\.full and Mask\.dense take",
        ),
        (lambda c: c.begin_forward([0], [1], mask=[[0, 1]]), "got list"),
        (lambda c: c.begin_forward([0], [1], mask=Mask), "got type"),
        (lambda c: c.attention(0, [[1.0]]), "qkv must be a tensor .* got list"),
        (lambda c: c.rollback(0, None), "is None where an object is needed"),
    ],
)
def test_arguments_of_other_types(cache, call, message):
    before = state(cache)
    with pytest.raises(TypeError, match=message):
        call(cache)
    assert state(cache) == before


def test_arrays_that_may_only_be_read(cache):
    cache.abort()
    qkv, slopes = random_qkv(3), np.full(QO_HEADS, 0.5, np.float32)
    with cache.forward([0], [3]):
        want = np.from_dlpack(cache.attention(0, qkv, alibi_slopes=slopes)).copy()
    cache.popn(0, 3)
    qkv.flags.writeable = slopes.flags.writeable = False
    with cache.forward([0], [3]):
        out = np.from_dlpack(cache.attention(0, qkv, alibi_slopes=slopes))
    assert (out == want).all()


def test_a_block_that_ended_its_step_itself(cache):
    """Its exception must not cost the pending nodes of other sequences."""
    before = state(cache)
    cache.add_sequence(1)
    with pytest.raises(ZeroDivisionError), cache.forward([1], [1]):
        cache.abort()
        raise ZeroDivisionError
    assert state(cache) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, MemoryError])
def test_what_a_callback_raises_arrives_as_it_is(cache, error):
    cache.abort()

    def fails(layer, *_):
        raise error("from the callback")

    for watch in (cache.select_pages, cache.observe_attention):
        watch(fails)
        with pytest.raises(error, match="from the callback"), cache.forward([0], [1]):
            cache.attention(0, random_qkv(1))
        watch(None)
    assert cache.sequence_length(0) == PAST


def test_a_callback_that_uses_its_cache_is_told_so(cache):
    cache.abort()
    cache.select_pages(lambda layer, q: cache.popn(0, 1))
    with pytest.raises(RuntimeError, match="by the call that this callback belongs to"):
        with cache.forward([0], [1]):
            cache.attention(0, random_qkv(1))
    assert cache.sequence_length(0) == PAST


@pytest.mark.parametrize("pages", [[0.0], "0", [True], [[0.5], None]])
def test_pages_are_integers(cache, pages):
    cache.abort()
    cache.select_pages(lambda layer, q: [pages])
    with pytest.raises(TypeError, match="pages must be integers"), cache.forward([0], [1]):
        cache.attention(0, random_qkv(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sm_scale": float("nan")}, "sm_scale must be finite, got nan"),
        ({"sm_scale": 1e300}, "sm_scale must be finite"),
        ({"soft_cap": float("nan")}, "soft_cap must be positive, or 0 for none, got nan"),
        ({"soft_cap": float("inf")}, "soft_cap must be positive"),
        ({"soft_cap": -1.0}, "soft_cap must be positive, or 0 for none, got -1"),
    ],
)
def test_scales_of_attention_that_cannot_be(options, message):
    cache = make_cache()
    cache.add_sequence(0)
    with cache.forward([0], [1]):
        for layer in range(cache.num_layers):
            heads = cache.num_qo_heads + 2 * cache.num_kv_heads
            qkv = np.ones((1, heads, cache.head_dim), np.float32)
            with pytest.raises(ValueError, match=message):
                cache.attention(layer, qkv, **options)
            cache.attention(layer, qkv)


@pytest.mark.parametrize("pending", ["x", 2, 1.0, []])
def test_pending_is_a_yes_or_a_no(pending):
    state = kvctl.RecurrentState.create(
        num_layers=1, init_values=[np.zeros(3, np.float32)], max_sequences=2
    )
    for owner in (make_cache(), state):
        owner.add_sequence(0)
        with pytest.raises(TypeError, match="pending must be True, False or None, got"):
            owner.begin_forward([0], [1], pending=pending)
        owner.begin_forward([0], [1], pending=np.True_)
        owner.abort()


@pytest.mark.parametrize("position", [-1, 2**30, 2**31, 2**62])
def test_positions_beyond_the_limit(position):
    cache = make_cache()
    cache.add_sequence(0)
    with pytest.raises(ValueError, match=rf"positions must be in \[0, 2\^30\), got {position}"):
        cache.begin_forward([0], [1], positions=[position])


@pytest.mark.parametrize("rows", [0, 2, 4])
def test_rows_that_are_no_tokens_of_the_step(rows):
    """What a compiled model pads its rows with comes through TVM's function, not from Python."""
    cache = make_cache()
    cache.add_sequence(0)
    with cache.forward([0], [3]):
        with pytest.raises(ValueError, match=f"qkv has {rows} rows and the step has 3 new tokens"):
            cache.attention(0, random_qkv(rows))
        cache.attention(0, random_qkv(3))

"""The attention that tokens get: sums against float64, in a compiled model, for dropping tokens."""

import numpy as np
import pytest
import tvm_ffi

import kvctl
from kvctl import AttentionMass, Mask, PagedKVCache
from kvctl._ffi.convert import to_tensor

QO_HEADS, KV_HEADS, DIM, PAGE = 4, 2, 32, 4
WIDTH = QO_HEADS + 2 * KV_HEADS


def create(layers=1):
    return PagedKVCache.create(
        num_layers=layers,
        num_qo_heads=QO_HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=DIM,
        max_total_tokens=512,
        page_size=PAGE,
    )


def weights(q, k, visible):
    """Softmax weights in float64, (heads, rows, columns)."""
    k = np.repeat(k.astype(np.float64), QO_HEADS // KV_HEADS, axis=1)
    scores = np.einsum("nhd,chd->hnc", q.astype(np.float64), k) * DIM**-0.5
    exponentials = np.exp(np.where(visible, scores, -np.inf))
    return exponentials / exponentials.sum(-1, keepdims=True)


def of_kv_heads(sums):
    """(columns, query heads) to (columns, KV heads)."""
    return sums.reshape(len(sums), KV_HEADS, -1).sum(-1)


@pytest.fixture
def prompt():
    return np.random.default_rng(0).standard_normal((3, 70, WIDTH, DIM)).astype(np.float32)


def test_sums_agree_with_float64(prompt):
    cache = create(3)
    cache.add_sequence(7)
    cache.add_sequence(8)
    seen = []
    cache.observe_attention(lambda *call: seen.append(call), heads="qo")
    window = Mask.window(20, 3)
    with cache.forward([8, 7], [30, 70], mask=[window, None]):
        for layer in range(3):
            cache.attention(layer, np.concatenate([prompt[layer, :30], prompt[layer]]))
    assert [(layer, ids) for layer, ids, _ in seen] == [(layer, [8, 7]) for layer in range(3)]
    row, column = np.arange(70)[:, None], np.arange(70)
    causal = column <= row
    narrow = (causal & ((column > row - 20) | (column < 3)))[:30, :30]
    for layer, _, (of_8, of_7) in seen:
        for sums, visible in ((of_8, narrow), (of_7, causal)):
            n = len(visible)
            qkv = prompt[layer, :n]
            keys = qkv[:, QO_HEADS : QO_HEADS + KV_HEADS]
            want = weights(qkv[:, :QO_HEADS], keys, visible).sum(1).T
            assert np.allclose(np.from_dlpack(sums), want, rtol=1e-5, atol=1e-6)
    cache.observe_attention(None)
    with cache.forward([7], [1]):
        for layer in range(3):
            cache.attention(layer, prompt[layer, :1])
    assert len(seen) == 3


def test_a_call_adds_to_its_tensor(prompt):
    cache = create()
    cache.add_sequence(0)
    mass = np.ones((70, KV_HEADS), np.float32)
    cache.begin_forward([0], [70])
    cache.attention(0, prompt[0], mass=mass)
    qkv = prompt[0]
    visible = np.tri(70, dtype=bool)
    want = weights(qkv[:, :QO_HEADS], qkv[:, QO_HEADS : QO_HEADS + KV_HEADS], visible).sum(1).T
    assert np.allclose(mass, 1 + of_kv_heads(want), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="mass"):
        cache.attention(0, qkv, mass=np.zeros((69, KV_HEADS), np.float32))
    with pytest.raises(TypeError, match="mass must be float32"):
        cache.attention(0, qkv, mass=np.zeros((70, KV_HEADS)))


def test_mass_adds_up_over_steps_and_counts_the_last_tokens(prompt):
    qkv = prompt[0]
    attention = weights(
        qkv[:, :QO_HEADS], qkv[:, QO_HEADS : QO_HEADS + KV_HEADS], np.tri(70, dtype=bool)
    )
    for last, counted in ((0, np.arange(70)), (5, np.r_[45:50, 65:70])):
        cache = create()
        cache.add_sequence(0)
        with AttentionMass(cache, last=last) as mass:
            for begin, end in ((0, 50), (50, 70)):
                with cache.forward([0], [end - begin]):
                    cache.attention(0, qkv[begin:end])
        want = of_kv_heads(attention[:, counted].sum(1).T)
        assert np.allclose(mass[0], want[None], rtol=1e-5, atol=1e-6)
        mass.keep(0, [3, 60])
        assert np.allclose(mass[0], want[None, [3, 60]], rtol=1e-5, atol=1e-6)
        mass.forget(0)
        with pytest.raises(KeyError):
            mass[0]


def test_tokens_that_get_nothing_can_go(prompt):
    """Heavy tokens are kept, the others evicted: little changes for the next token."""
    qkv = prompt[0].copy()
    heavy = np.array([0, 9, 23, 41, 64])
    keys = qkv[:, QO_HEADS : QO_HEADS + KV_HEADS]
    keys *= 0.1
    qkv[:, :QO_HEADS, 0] = 4.0  # every query looks for these keys
    keys[heavy, :, 0] = 20.0
    cache = create()
    for seq_id in (0, 1):
        cache.add_sequence(seq_id)
    with AttentionMass(cache) as mass, cache.forward([0, 1], [69, 69]):
        cache.attention(0, np.concatenate([qkv[:69], qkv[:69]]))
    ranked = np.argsort(mass[0].sum(axis=(0, 2)))[::-1][: len(heavy)]
    assert sorted(ranked) == list(heavy)
    cache.evict(0, sorted(ranked))
    assert cache.sequence_length(0) == len(heavy)
    with cache.forward([0, 1], [1, 1]):
        kept, full = np.from_dlpack(cache.attention(0, qkv[[69, 69]]))
    assert np.abs(kept - full).max() < 1e-3
    cache.evict(1, range(60, 68))  # the control: tokens that are near, but of which one is heavy
    with cache.forward([1], [1]):
        near = np.from_dlpack(cache.attention(0, qkv[69:]))[0]
    assert np.abs(near - full).max() > 0.1


def test_what_a_compiled_model_calls_is_seen(prompt):
    cache = create()
    cache.add_sequence(0)
    attend = tvm_ffi.get_global_func("vm.builtin.attention_kv_cache_attention_with_fused_qkv")
    qkv, out = (
        to_tensor(array) for array in (prompt[0], np.zeros((70, QO_HEADS, DIM), np.float32))
    )
    with AttentionMass(cache, heads="qo") as mass, cache.forward([0], [70]):
        attend(cache, 0, DIM**-0.5, qkv, out)
    assert mass[0].shape == (1, 70, QO_HEADS)
    assert np.allclose(mass[0].sum(axis=1), 70, rtol=1e-5)


def test_observers_that_make_mistakes(prompt):
    cache = create()
    cache.add_sequence(0)
    with pytest.raises(ValueError, match="'kv' or 'qo', got 'all'"):
        cache.observe_attention(print, heads="all")
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        cache.observe_attention(print, last=-1)

    def fails(layer, seq_ids, sums):
        raise KeyError("no room for these")

    cache.observe_attention(fails)
    cache.begin_forward([0], [70])
    with pytest.raises(KeyError, match="no room"):
        cache.attention(0, prompt[0])
    cache.observe_attention(None)
    cache.attention(0, prompt[0])
    cache.end_forward()
    assert kvctl.AttentionMass is AttentionMass

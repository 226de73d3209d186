"""What an attention call may ask for besides a mask: soft cap, ALiBi, sinks, lse, chosen pages."""

import numpy as np
import pytest

import kvctl
from kvctl import Mask, PagedKVCache

QO_HEADS, KV_HEADS, DIM, PAGE, PAST, NEW = 4, 2, 32, 4, 22, 3


@pytest.fixture
def setup():
    """A cache in a step of NEW tokens behind PAST, and q, k, v in float64."""
    rng = np.random.default_rng(0)
    cache = PagedKVCache.create(
        num_layers=1,
        num_qo_heads=QO_HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=DIM,
        max_total_tokens=64,
        page_size=PAGE,
    )
    cache.add_sequence(0)
    qkv = rng.standard_normal((PAST + NEW, QO_HEADS + 2 * KV_HEADS, DIM)).astype(np.float32)
    with cache.forward([0], [PAST]):
        cache.attention(0, qkv[:PAST])
    cache.begin_forward([0], [NEW])
    return cache, qkv


def reference(qkv, *, visible=None, soft_cap=0.0, slopes=None, sinks=None):
    qkv = qkv.astype(np.float64)
    q = qkv[PAST:, :QO_HEADS]
    k, v = (
        np.repeat(qkv[:, begin : begin + KV_HEADS], QO_HEADS // KV_HEADS, axis=1)
        for begin in (QO_HEADS, QO_HEADS + KV_HEADS)
    )
    row, column = np.arange(PAST, PAST + NEW)[:, None], np.arange(PAST + NEW)
    scores = np.einsum("nhd,chd->hnc", q, k) * DIM**-0.5
    if soft_cap:
        scores = soft_cap * np.tanh(scores / soft_cap)
    if slopes is not None:
        scores += slopes[:, None, None] * (column - row)
    scores = np.where((column <= row) & (True if visible is None else visible), scores, -np.inf)
    weights = np.exp(scores)
    total = weights.sum(-1)
    if sinks is not None:
        total += np.exp(sinks)[:, None]
    out = np.einsum("hnc,chd->nhd", weights / total[..., None], v)
    return out, np.log(total).T


@pytest.mark.parametrize("names", [(), ("soft_cap",), ("slopes",), ("sinks",), ("slopes", "sinks")])
def test_options_agree_with_float64(setup, names):
    cache, qkv = setup
    rng = np.random.default_rng(1)
    values = {
        "soft_cap": 0.7,
        "slopes": rng.random(QO_HEADS).astype(np.float32),
        "sinks": rng.standard_normal(QO_HEADS).astype(np.float32),
    }
    chosen = {name: values[name] for name in names}
    want, want_lse = reference(qkv, **chosen)
    if "slopes" in chosen:
        chosen["alibi_slopes"] = chosen.pop("slopes")
    lse = np.empty((NEW, QO_HEADS), np.float32)
    out = np.from_dlpack(cache.attention(0, qkv[PAST:], lse=lse, **chosen))
    assert np.allclose(out, want, rtol=1e-5, atol=1e-6)
    assert np.allclose(lse, want_lse, rtol=1e-5, atol=1e-6)


def test_options_of_the_wrong_shape_or_type(setup):
    cache, qkv = setup
    with pytest.raises(ValueError, match="sinks"):
        cache.attention(0, qkv[PAST:], sinks=np.zeros(QO_HEADS + 1, np.float32))
    with pytest.raises(TypeError, match="alibi_slopes must be float32"):
        cache.attention(0, qkv[PAST:], alibi_slopes=np.zeros(QO_HEADS))
    with pytest.raises(ValueError, match="lse"):
        cache.attention(0, qkv[PAST:], lse=np.zeros((NEW, 1), np.float32))


def test_selected_pages_are_what_is_looked_at(setup):
    cache, qkv = setup
    seen = []

    def select(layer, q):
        seen.append((layer, np.from_dlpack(q).copy()))
        return [[3, 1]]

    cache.select_pages(select)
    out = np.from_dlpack(cache.attention(0, qkv[PAST:]))
    page = np.arange(PAST + NEW) // PAGE
    # The new tokens begin in page 5, which is seen although it was not chosen.
    want, _ = reference(qkv, visible=np.isin(page, [1, 3]) | (page >= PAST // PAGE))
    assert np.allclose(out, want, rtol=1e-5, atol=1e-6)
    assert seen[0][0] == 0
    assert (seen[0][1] == qkv[PAST:, :QO_HEADS]).all()

    cache.select_pages(lambda layer, q: [None])
    assert np.allclose(np.from_dlpack(cache.attention(0, qkv[PAST:])), reference(qkv)[0], atol=1e-6)
    cache.select_pages(None)
    assert np.allclose(np.from_dlpack(cache.attention(0, qkv[PAST:])), reference(qkv)[0], atol=1e-6)


def test_heads_look_at_pages_of_their_own(setup):
    cache, qkv = setup
    cache.select_pages(lambda layer, q: [[[0], None]])
    out = np.from_dlpack(cache.attention(0, qkv[PAST:]))
    page = np.arange(PAST + NEW) // PAGE
    few, _ = reference(qkv, visible=(page == 0) | (page >= PAST // PAGE))
    group = QO_HEADS // KV_HEADS
    assert np.allclose(out[:, :group], few[:, :group], rtol=1e-5, atol=1e-6)
    assert np.allclose(out[:, group:], reference(qkv)[0][:, group:], rtol=1e-5, atol=1e-6)


def test_selectors_that_make_mistakes(setup):
    cache, qkv = setup
    cache.select_pages(lambda layer, q: [[7]])
    with pytest.raises(IndexError, match="chose page 7 of a sequence with 7 pages"):
        cache.attention(0, qkv[PAST:])
    cache.select_pages(lambda layer, q: [[[0], [0], [0]]])
    with pytest.raises(ValueError, match="lists for 3 heads and the cache has 2 KV heads"):
        cache.attention(0, qkv[PAST:])
    cache.select_pages(lambda layer, q: [])
    with pytest.raises(ValueError, match="for each of 1 sequences"):
        cache.attention(0, qkv[PAST:])

    def fails(layer, q):
        raise KeyError("no summary of this page")

    cache.select_pages(fails)
    with pytest.raises(KeyError, match="no summary"):
        cache.attention(0, qkv[PAST:])
    cache.abort()
    assert cache.sequence_length(0) == PAST


def test_selector_reaches_a_compiled_model(tiny_model):
    runner = kvctl.ModelRunner.load(tiny_model)
    runner.cache.add_sequence(0)
    prompt = np.arange(40) % 200
    runner.prefill([0], [prompt])
    layers = []

    def last_pages(layer, q):
        layers.append(layer)
        return [[0]]  # and the page of the new token

    runner.cache.select_pages(last_pages)
    chosen = np.from_dlpack(runner.forward([0], [[7]]))
    runner.cache.select_pages(None)
    runner.cache.popn(0, 1)
    seen = np.zeros((1, 41), bool)
    seen[0, :16] = seen[0, 32:] = True
    masked = np.from_dlpack(runner.forward([0], [[7]], mask=Mask.full(seen)))
    assert sorted(set(layers)) == [0, 1]
    assert np.allclose(chosen, masked, atol=1e-6)

"""kvctl.torch.attention: layouts, types, strides, and a cache that holds what it was given."""

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'kvctl[torch]'")

import kvctl.torch
from kvctl import Mask
from kvctl._ffi import functions
from library_rotation import library_cache, rotation_in_python
from torch_reference import (
    BOUND,
    DIM,
    HEADS,
    KV_HEADS,
    LAYERS,
    causal,
    error,
    make_cache,
    plain,
    rows,
)

pytestmark = pytest.mark.torch


def step(cache, seq_id, parts, begin, end, *, packed=False, **options):
    """Attention of tokens [begin, end), (LAYERS, HEADS, n, DIM)."""
    out = []
    with cache.forward([seq_id], [end - begin], **options):
        for layer in range(LAYERS):
            q, k, v = (part[layer, :, begin:end] for part in parts)
            if packed:
                new = (x.transpose(0, 1) for x in (q, k, v))
                out.append(kvctl.torch.attention(cache, layer, *new).transpose(0, 1))
            else:
                out.append(kvctl.torch.attention(cache, layer, q[None], k[None], v[None])[0])
    return torch.stack(out)


@pytest.mark.parametrize("dtype", BOUND, ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_chunks_of_a_sequence_are_as_plain_attention(dtype, packed):
    cache = make_cache(dtype=str(dtype).removeprefix("torch."))
    cache.add_sequence(0)
    parts = rows(50, dtype=dtype)
    for begin, end in ((0, 33), (33, 34), (34, 50)):
        out = step(cache, 0, parts, begin, end, packed=packed)
        q, k, v = parts[0][:, :, begin:end], parts[1][:, :, :end], parts[2][:, :, :end]
        assert out.dtype is dtype
        assert error(out, plain(q, k, v, causal(end - begin, end))) < BOUND[dtype]


@pytest.mark.parametrize("dtype", BOUND, ids=str)
def test_int8_pages_take_rows_of_any_type(dtype):
    cache = make_cache(dtype="int8")
    cache.add_sequence(0)
    parts = rows(50, dtype=dtype)
    for begin, end in ((0, 33), (33, 34), (34, 50)):
        out = step(cache, 0, parts, begin, end)
        q, k, v = parts[0][:, :, begin:end], parts[1][:, :, :end], parts[2][:, :, :end]
        assert out.dtype is dtype
        assert error(out, plain(q, k, v, causal(end - begin, end))) < 5e-2


def test_the_layouts_agree_bit_for_bit():
    one, other = make_cache(), make_cache()
    parts = rows(20)
    for cache in (one, other):
        cache.add_sequence(0)
    assert step(one, 0, parts, 0, 20).equal(step(other, 0, parts, 0, 20, packed=True))


def test_a_batch_is_the_step_s_sequences():
    cache = make_cache()
    parts = [rows(7, seed) for seed in range(3)]
    for seq_id in range(3):
        cache.add_sequence(seq_id)
    q, k, v = (torch.stack([part[i] for part in parts], 1) for i in range(3))
    with cache.forward([0, 1, 2], [7, 7, 7]):
        out = torch.stack(
            [kvctl.torch.attention(cache, i, q[i], k[i], v[i]) for i in range(LAYERS)]
        )
    assert out.shape == (LAYERS, 3, HEADS, 7, DIM)
    assert error(out, plain(q, k, v, causal(7, 7))) < BOUND[torch.float32]


def test_packed_sequences_of_different_lengths():
    cache = make_cache()
    lengths, parts = [3, 1, 8], [rows(n, n) for n in (3, 1, 8)]
    for seq_id in range(3):
        cache.add_sequence(seq_id)
    new = [torch.cat([part[i] for part in parts], 2).transpose(1, 2) for i in range(3)]
    with cache.forward([0, 1, 2], lengths):
        out = [kvctl.torch.attention(cache, i, *(x[i] for x in new)) for i in range(LAYERS)]
    for got, (q, k, v) in zip(torch.stack(out).split(lengths, 1), parts, strict=True):
        expected = plain(q, k, v, causal(q.shape[2], q.shape[2]))
        assert error(got.transpose(1, 2), expected) < BOUND[torch.float32]


def test_a_tree_and_its_commit():
    cache = make_cache()
    cache.add_sequence(0)
    q, k, v = rows(14)
    step(cache, 0, (q, k, v), 0, 10)
    out = step(cache, 0, (q, k, v), 10, 14, mask=Mask.tree([-1, 0, 0, 2]))
    sees = causal(4, 14)
    sees[2, 11] = sees[3, 11] = False  # node 1 is on no path to these
    assert error(out, plain(q[:, :, 10:], k, v, sees)) < BOUND[torch.float32]
    cache.commit([0], [[0, 2, 3]])
    path = torch.tensor([*range(11), 12, 13])
    q1, k1, v1 = rows(1, seed=1)
    out = step(cache, 0, (q1, k1, v1), 0, 1)
    k, v = torch.cat([k[:, :, path], k1], 2), torch.cat([v[:, :, path], v1], 2)
    assert error(out, plain(q1, k, v, causal(1, 14))) < BOUND[torch.float32]


STRIDES = {
    "every second token": lambda x: x.repeat_interleave(2, -2)[..., ::2, :],
    "every second number": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "numbers outermost": lambda x: x.movedim(-1, 0).contiguous().movedim(0, -1),
    "tokens innermost": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "expanded from one": lambda x: x[:, :, :1].expand(x.shape),
}


@pytest.mark.parametrize("kind", STRIDES)
@pytest.mark.parametrize("n", [1, 6])
def test_strides_change_no_bit(kind, n):
    parts = [STRIDES[kind](part) for part in rows(n)]
    outs = []
    for these in (parts, [part.contiguous() for part in parts]):
        cache = make_cache()
        cache.add_sequence(0)
        outs += [step(cache, 0, these, 0, n), step(cache, 0, these, 0, n, packed=True)]
    assert outs[0].equal(outs[2])
    assert outs[1].equal(outs[3])


IN_PLACE = {
    "projected": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "in one tensor": lambda x: (
        torch.cat([x, x], 1).transpose(1, 2).contiguous().transpose(1, 2)[:, : x.shape[1]]
    ),
    "one token": lambda x: x[:, :, :1].contiguous(),
}


@pytest.mark.parametrize("kind", IN_PLACE)
@pytest.mark.parametrize("packed", [False, True])
def test_rows_of_heads_are_read_where_they_lie(kind, packed, monkeypatch):
    parts = [IN_PLACE[kind](part) for part in rows(6)]
    n = parts[0].shape[2]
    expected = plain(*parts, causal(n, n))
    cache = make_cache()
    cache.add_sequence(0)
    monkeypatch.setattr(functions.cache, "attend", None)  # which takes a copy
    out = step(cache, 0, parts, 0, n, packed=packed)
    assert error(out, expected) < BOUND[torch.float32]


@pytest.mark.parametrize("packed", [False, True])
def test_a_cache_that_a_model_library_rotates_for(packed):
    cache = library_cache(
        rotation_in_python(lambda x, at: x, KV_HEADS),
        num_layers=LAYERS,
        num_qo_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=DIM,
        max_total_tokens=64,
        page_size=16,
        prefill_chunk_size=16,
    )
    cache.add_sequence(0)
    parts = rows(7)
    out = step(cache, 0, parts, 0, 7, packed=packed)
    assert error(out, plain(*parts, causal(7, 7))) < BOUND[torch.float32]


def test_the_options_of_attention():
    cache = make_cache()
    cache.add_sequence(0)
    q, k, v = (part[0] for part in rows(9))
    lse = torch.empty(9, HEADS)
    sinks = torch.linspace(-1, 1, HEADS)
    with cache.forward([0], [9], pending=True):
        out = kvctl.torch.attention(
            cache, 0, q[None], k[None], v[None], scale=0.5, sinks=sinks, lse=lse
        )
    logits = 0.5 * q.double() @ k.double().repeat_interleave(HEADS // KV_HEADS, 0).transpose(1, 2)
    logits = logits.masked_fill(~causal(9, 9), -torch.inf)
    with_sink = torch.cat([logits, sinks.double().view(HEADS, 1, 1).expand(HEADS, 9, 1)], -1)
    expected = with_sink.softmax(-1)[..., :-1] @ v.double().repeat_interleave(HEADS // KV_HEADS, 0)
    assert error(out[0], expected) < BOUND[torch.float32]
    assert error(lse.T, with_sink.logsumexp(-1)) < 1e-5


def test_a_query_that_sees_nothing_gets_zeros():
    cache = make_cache()
    cache.add_sequence(0)
    nothing = Mask.full(torch.zeros(2, 2, dtype=torch.bool).numpy())
    assert not step(cache, 0, rows(2), 0, 2, mask=nothing).any()


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_without_autograd_tensors_that_require_grad_are_taken(mode):
    cache = make_cache()
    cache.add_sequence(0)
    parts = rows(3)
    parameter = torch.ones((), requires_grad=True)
    with mode():
        out = step(cache, 0, [part * parameter for part in parts], 0, 3)
    assert not out.requires_grad
    assert error(out, plain(*parts, causal(3, 3))) < BOUND[torch.float32]


def test_the_result_can_be_reshaped_without_a_copy():
    cache = make_cache()
    cache.add_sequence(0)
    q, k, v = (part[:1] for part in rows(5))
    with cache.forward([0], [5], pending=True):
        out = kvctl.torch.attention(cache, 0, q, k, v)
    flat = out.transpose(1, 2).reshape(1, 5, HEADS * DIM)
    assert flat.data_ptr() == out.data_ptr()

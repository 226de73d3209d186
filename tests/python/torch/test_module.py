"""kvctl.torch.Attention in a model: steps, compiled graphs, several caches and threads."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'kvctl[torch]'")

import kvctl.torch
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


class Model(torch.nn.Module):
    """Layers of nothing but attention, over given q, k and v."""

    def __init__(self, **options):
        super().__init__()
        self.attend = torch.nn.ModuleList(
            kvctl.torch.Attention(layer, **options) for layer in range(LAYERS)
        )

    def forward(self, q, k, v):
        each = zip(self.attend, q, k, v, strict=True)
        return torch.stack([attend(one * 1.0, two * 1.0, v * 1.0) for attend, one, two, v in each])


def run(model, cache, parts, begin, end, seq_id=0):
    with torch.inference_mode(), kvctl.torch.forward(cache, [seq_id], [end - begin]):
        return model(*(part[:, None, :, begin:end].clone() for part in parts))[:, 0]


def expected(parts, begin, end):
    q, k, v = parts
    return plain(q[:, :, begin:end], k[:, :, :end], v[:, :, :end], causal(end - begin, end))


@pytest.fixture
def cache():
    made = make_cache()
    made.add_sequence(0)
    return made


@pytest.fixture
def compiled():
    """A compiled model; the compiler forgets it afterwards."""
    torch.compiler.reset()
    yield torch.compile(Model(), fullgraph=True, backend="aot_eager")
    torch.compiler.reset()


def test_chunks(cache):
    parts = rows(30)
    for begin, end in ((0, 20), (20, 21), (21, 30)):
        out = run(Model(), cache, parts, begin, end)
        assert error(out, expected(parts, begin, end)) < BOUND[torch.float32]


def test_in_place_of_scaled_dot_product_attention(cache):
    q, k, v = (part[:, None] for part in rows(6))
    attend = kvctl.torch.Attention(0)
    theirs = torch.nn.functional.scaled_dot_product_attention(
        q[0], k[0], v[0], None, 0.0, True, scale=0.3, enable_gqa=True
    )
    with kvctl.torch.forward(cache, [0], [6], pending=True):
        ours = attend(q[0], k[0], v[0], None, 0.0, True, scale=0.3, enable_gqa=True)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < BOUND[torch.float32]


def test_it_has_no_parameters_and_shows_itself():
    module = kvctl.torch.Attention(3, scale=0.5, sinks=torch.zeros(4))
    assert not list(module.parameters())
    assert not module.state_dict()
    assert repr(module) == "Attention(layer=3, scale=0.5, soft_cap=0.0)"
    assert module.to("meta").sinks.is_meta


def test_steps_inside_one_another_have_each_their_cache(cache):
    other, parts, others = make_cache(), rows(4), rows(5, seed=1)
    other.add_sequence(0)
    model = Model()
    with kvctl.torch.forward(cache, [0], [4]):
        assert kvctl.torch.current_cache() is cache
        out = run(model, other, others, 0, 5)
        assert kvctl.torch.current_cache() is cache
        first = model(*(part[:, None] for part in parts))[:, 0]
    assert error(first, expected(parts, 0, 4)) < BOUND[torch.float32]
    assert error(out, expected(others, 0, 5)) < BOUND[torch.float32]
    with pytest.raises(RuntimeError, match="no cache here"):
        kvctl.torch.current_cache()


def test_a_block_that_raises_takes_the_step_back(cache):
    with pytest.raises(ZeroDivisionError), kvctl.torch.forward(cache, [0], [4]):
        Model()(*(part[:, None] for part in rows(4)))
        _ = 1 / 0
    assert cache.sequence_length(0) == 0
    with pytest.raises(RuntimeError, match="no cache here"):
        kvctl.torch.current_cache()


def test_compiled_in_one_graph(cache, compiled):
    eager_cache, parts = make_cache(), rows(24)
    eager_cache.add_sequence(0)
    for begin, end in ((0, 9), (9, 10), (10, 17), (17, 24)):
        out = run(compiled, cache, parts, begin, end)
        assert out.equal(run(Model(), eager_cache, parts, begin, end))


def test_one_compiled_graph_serves_every_cache(cache, compiled):
    parts = rows(24)
    for begin, end in ((0, 9), (9, 16)):  # the second length makes it a variable
        run(compiled, cache, parts, begin, end)
    with torch.compiler.set_stance("fail_on_recompile"):
        for seed in (1, 2):
            other, parts = make_cache(), rows(24, seed)
            other.add_sequence(0)
            out = run(compiled, other, parts, 0, 12)
            assert error(out, expected(parts, 0, 12)) < BOUND[torch.float32]


def test_a_compiled_model_without_a_step_is_refused(cache, compiled):
    parts = [part[:, None] for part in rows(3)]
    with torch.inference_mode(), pytest.raises(RuntimeError, match="no cache here"):
        compiled(*parts)


def test_the_compiler_keeps_calls_whose_result_is_not_used(cache):
    attend = kvctl.torch.Attention(0), kvctl.torch.Attention(1)
    torch.compiler.reset()

    @torch.compile(fullgraph=True)
    def write(q, k, v):
        for one in attend:
            one(q, k, v)
        return q + 1

    q, k, v = (part[:1] for part in rows(5))
    with torch.inference_mode(), kvctl.torch.forward(cache, [0], [5]):
        write(q, k, v)
    assert cache.sequence_length(0) == 5
    kept = torch.from_dlpack(cache.get_kv(0)[0])
    assert all(layer.equal(k[0].transpose(0, 1)) for layer in kept)


def test_compiled_by_inductor(cache):
    torch.compiler.reset()
    model, parts = torch.compile(Model(soft_cap=20.0), fullgraph=True), rows(12)
    other = make_cache()
    other.add_sequence(0)
    for begin, end in ((0, 7), (7, 12)):
        out = run(model, cache, parts, begin, end)
        assert (out - run(Model(soft_cap=20.0), other, parts, begin, end)).abs().max() < 1e-5
    torch.compiler.reset()


def test_the_function_breaks_the_graph(cache):
    torch.compiler.reset()

    @torch.compile(backend="aot_eager")
    def model(cache, q, k, v):
        return torch.stack(
            [kvctl.torch.attention(cache, i, q[i] * 1.0, k[i], v[i]) * 2 for i in range(LAYERS)]
        )

    parts = rows(8)
    with torch.inference_mode(), cache.forward([0], [8]):
        out = model(cache, *(part[:, None] for part in parts))[:, 0]
    assert error(out / 2, expected(parts, 0, 8)) < BOUND[torch.float32]
    torch.compiler.reset()


@pytest.mark.parametrize("kind", ["eager", "compiled"])
def test_two_threads_with_a_cache_each(kind, request):
    model = request.getfixturevalue("compiled") if kind == "compiled" else Model()
    threads, start = 2, Barrier(2)
    if kind == "compiled":  # compiling is torch's, and not what runs at once here
        for n in (3, 5, 1):
            warm = make_cache()
            warm.add_sequence(0)
            run(model, warm, rows(n), 0, n)

    def work(seed):
        cache, parts, worst = make_cache(), rows(60, seed), 0.0
        cache.add_sequence(0)
        start.wait()
        for begin in range(0, 60, 5):
            out = run(model, cache, parts, begin, begin + 5)
            worst = max(worst, error(out, expected(parts, begin, begin + 5)))
        return worst

    with ThreadPoolExecutor(threads) as pool:
        assert max(pool.map(work, range(threads))) < BOUND[torch.float32]


def test_a_step_is_the_thread_s_own(cache):
    with (
        kvctl.torch.forward(cache, [0], [1], pending=True),
        ThreadPoolExecutor(1) as pool,
        pytest.raises(RuntimeError, match=r"no cache here: .* in the same thread"),
    ):
        pool.submit(kvctl.torch.current_cache).result()


@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (8, 1), (6, 3)])
def test_groups_of_query_heads(heads, kv_heads):
    cache = make_cache(num_qo_heads=heads, num_kv_heads=kv_heads)
    cache.add_sequence(0)
    q, k, v = (torch.randn(1, n, 7, DIM) for n in (heads, kv_heads, kv_heads))
    with kvctl.torch.forward(cache, [0], [7], pending=True):
        out = kvctl.torch.Attention(0)(q, k, v)
    assert error(out, plain(q, k, v, causal(7, 7))) < BOUND[torch.float32]


@pytest.mark.parametrize("kind", ["eager", "compiled"])
def test_autocast_makes_one_type_of_several(kind, request, cache):
    model = request.getfixturevalue("compiled") if kind == "compiled" else Model()
    q, k, v = rows(9)
    parts = q, k, v.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = run(model, cache, parts, 0, 9)
    assert out.dtype is torch.bfloat16
    assert error(out, expected(parts, 0, 9)) < BOUND[torch.bfloat16]
    with pytest.raises(ValueError, match="of one type"):
        run(model, cache, parts, 0, 9)


def test_exported(cache):
    parts = rows(9)
    program = torch.export.export(Model(), tuple(part[:, None] for part in parts))
    out = run(program.module(), cache, parts, 0, 9)
    assert error(out, expected(parts, 0, 9)) < BOUND[torch.float32]


def test_shapes_of_the_reference():
    assert [part.shape[1] for part in rows(1)] == [HEADS, KV_HEADS, KV_HEADS]

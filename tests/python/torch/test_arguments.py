"""What kvctl.torch refuses: a sentence with the value, and a cache that is as it was."""

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'kvctl[torch]'")

from torch._subclasses.fake_tensor import FakeTensorMode

import kvctl
import kvctl.torch
from torch_reference import BOUND, HEADS, KV_HEADS, causal, error, make_cache, plain, rows

pytestmark = pytest.mark.torch

Q, K, V = (part[:1] for part in rows(3))


def fake(tensor):
    with FakeTensorMode():
        return torch.empty(tensor.shape)


WRONG = {
    "two dimensions": (
        (Q[0, 0], K, V),
        ValueError,
        r"q must be \(batch, 4, n, 64\) or \(total_new, 4, 64\), got \(3, 64\)",
    ),
    "heads": ((Q[:, :3], K, V), ValueError, r"q must be \(1, 4, 3, 64\), got \(1, 3, 3, 64\)"),
    "fewer keys": (
        (Q, K[:, :, :2], V),
        ValueError,
        r"k must be \(1, 2, 3, 64\), got \(1, 2, 2, 64\)",
    ),
    "head dim": ((Q, K, V[..., :32]), ValueError, r"v must be .*, got \(1, 2, 3, 32\)"),
    "layouts": ((Q, K[0].transpose(0, 1), V), ValueError, r"k must be .*, got \(3, 2, 64\)"),
    "repeated": ((Q, Q, Q), ValueError, "the cache has 2 KV heads, each for 2 query heads; pass k"),
    "fewer rows": (
        (Q[:, :, :2], K[:, :, :2], V[:, :, :2]),
        ValueError,
        "has 2 rows and the step has 3 new tokens",
    ),
    "no rows": ((Q[:, :, :0], K[:, :, :0], V[:, :, :0]), ValueError, "0 rows .* 3 new tokens"),
    "float64": ((Q.double(), K.double(), V.double()), ValueError, "of one type, .* torch.float64"),
    "int": ((Q.int(), K.int(), V.int()), ValueError, "of one type, .* torch.int32"),
    "types": ((Q, K, V.half()), ValueError, "torch.float32, torch.float32 and torch.float16"),
    "device": (
        (Q.to("meta"), K, V),
        ValueError,
        "on the cache's device, cpu, got meta, cpu and cpu",
    ),
    "grad": (
        (Q, K, V.clone().requires_grad_()),
        ValueError,
        r"v requires grad .* torch\.inference_mode\(\)",
    ),
    "numpy": ((Q, K.numpy(), V), TypeError, r"k must be a torch\.Tensor, got ndarray"),
    "none": ((None, K, V), TypeError, r"q must be a torch\.Tensor, got NoneType"),
    "fake": ((fake(Q), K, V), TypeError, r"q must be a plain torch\.Tensor, got FakeTensor"),
    "sparse": ((Q, K.to_sparse(), V), TypeError, r"k must be a plain .*, got torch\.sparse_coo"),
}
OPTIONS = {
    "layer": ({"layer": 2}, IndexError, "layer 2 is not in the cache, which has layers 0 to 1"),
    "layer's type": ({"layer": "0"}, TypeError, "layer must be an integer, got '0'"),
    "scale": ({"scale": float("nan")}, ValueError, "scale must be finite, got nan"),
    "scale's type": ({"scale": "1"}, TypeError, "scale must be a number, got '1'"),
    "soft cap": ({"soft_cap": -1.0}, ValueError, "soft_cap must be positive, .* got -1"),
    "sinks' shape": ({"sinks": torch.zeros(5)}, ValueError, "sinks must have shape"),
    "sinks' type": (
        {"sinks": torch.zeros(4).half()},
        TypeError,
        "sinks must be float32, got float16",
    ),
    "a list": ({"sinks": [0.0] * 4}, TypeError, r"sinks must be a torch\.Tensor, got list"),
    "strided": ({"lse": torch.zeros(HEADS, 3).T}, ValueError, "lse must be contiguous"),
}


def check_refused(call, kind, message):
    """The call is refused in a step, and the step goes on as if nothing had happened."""
    cache = make_cache()
    cache.add_sequence(0)
    free = cache.num_available_pages
    with pytest.raises(kind, match=message), kvctl.torch.forward(cache, [0], [3]):
        call(cache)
    assert (cache.in_forward, cache.sequence_length(0)) == (False, 0)
    assert cache.num_available_pages == free
    with kvctl.torch.forward(cache, [0], [3]):
        with pytest.raises(kind, match=message):
            call(cache)
        for layer in range(2):
            out = kvctl.torch.attention(cache, layer, Q, K, V)
    assert error(out, plain(Q, K, V, causal(3, 3))) < BOUND[torch.float32]
    assert cache.sequence_length(0) == 3


@pytest.mark.parametrize("case", WRONG)
def test_wrong_tensors(case):
    tensors, kind, message = WRONG[case]
    check_refused(lambda cache: kvctl.torch.attention(cache, 0, *tensors), kind, message)
    check_refused(lambda cache: kvctl.torch.Attention(0)(*tensors), kind, message)


@pytest.mark.parametrize("case", ["two dimensions", "heads", "repeated", "types", "grad"])
@pytest.mark.parametrize("fullgraph", [False, True])
def test_wrong_tensors_of_a_compiled_model(case, fullgraph):
    tensors, kind, message = WRONG[case]
    if fullgraph and case == "grad":  # found while torch compiles, whose error names ours
        kind = torch._dynamo.exc.Unsupported
    torch.compiler.reset()
    module = torch.compile(kvctl.torch.Attention(0), backend="aot_eager", fullgraph=fullgraph)
    check_refused(lambda cache: module(*tensors), kind, message)
    torch.compiler.reset()


@pytest.mark.parametrize("case", OPTIONS)
def test_wrong_options(case):
    options, kind, message = OPTIONS[case]
    given = {"layer": 0} | options
    layer = given.pop("layer")
    check_refused(
        lambda cache: kvctl.torch.attention(cache, layer, Q, K, V, **given), kind, message
    )


def test_a_module_that_only_traces_is_refused():
    def call(cache):
        with FakeTensorMode(allow_non_fake_inputs=True):
            kvctl.torch.attention(cache, 0, Q, K, V)

    check_refused(call, TypeError, "FakeTensor")


def test_what_the_module_does_not_take():
    module = kvctl.torch.Attention(0)
    with pytest.raises(ValueError, match=r"attn_mask must be None: .* mask=\.\.\.\)"):
        module(Q, K, V, attn_mask=torch.ones(3, 3).bool())
    with pytest.raises(ValueError, match=r"dropout_p must be 0, got 0\.1"):
        module(Q, K, V, dropout_p=0.1)
    with pytest.raises(RuntimeError, match="no cache here: run the model in `with kvctl"):
        module(Q, K, V)


def test_without_a_step():
    cache = make_cache()
    with pytest.raises(RuntimeError, match="between begin_forward and end_forward"):
        kvctl.torch.attention(cache, 0, Q, K, V)
    with pytest.raises(TypeError, match=r"cache must be a kvctl\.PagedKVCache, got NoneType"):
        kvctl.torch.attention(None, 0, Q, K, V)
    with pytest.raises(TypeError, match=r"must be a kvctl\.PagedKVCache, got str"):
        kvctl.torch.forward("cache", [0], [1]).__enter__()
    with pytest.raises(KeyError, match="no sequence 5"), kvctl.torch.forward(cache, [5], [1]):
        pass


def test_a_key_that_pages_cannot_hold():
    cache = make_cache(dtype="float16")
    cache.add_sequence(0)
    large = torch.full_like(K, 1e5)
    with (
        pytest.raises(ValueError, match="layer 0: K of sequence 0 at position 0"),
        kvctl.checking(),
        kvctl.torch.forward(cache, [0], [3]),
    ):
        kvctl.torch.attention(cache, 0, Q, large, V)
    assert cache.sequence_length(0) == 0


def test_heads_of_the_reference():
    assert Q.shape[1] == HEADS
    assert K.shape[1] == KV_HEADS

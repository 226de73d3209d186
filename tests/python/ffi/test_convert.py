"""What goes in as a tensor, what is refused, and how the message calls it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm_ffi

import kvctl
from kvctl import PagedKVCache
from kvctl._ffi.convert import to_tensor

HEADS, DIM = 2, 8
QKV = np.random.default_rng(0).standard_normal((3, 3 * HEADS, DIM)).astype(np.float32)


@pytest.fixture
def cache() -> PagedKVCache:
    cache = PagedKVCache.create(
        num_layers=1, num_qo_heads=HEADS, num_kv_heads=HEADS, head_dim=DIM, max_total_tokens=64
    )
    cache.add_sequence(0)
    cache.begin_forward([0], [3])
    return cache


def bfloat16(array: np.ndarray) -> np.ndarray:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="NumPy has no bfloat16 of its own")
    return array.astype(ml_dtypes.bfloat16)


@pytest.mark.torch
def test_bfloat16_of_ml_dtypes_shares_its_memory() -> None:
    array = bfloat16(QKV)
    tensor = to_tensor(array)
    assert str(tensor.dtype) == "bfloat16"
    assert tuple(tensor.shape) == array.shape
    array[0] = 7
    assert (np.from_dlpack(to_tensor(array.view(np.uint16))) == array.view(np.uint16)).all()
    torch = pytest.importorskip("torch")
    assert (torch.from_dlpack(tensor).float().numpy() == array.astype(np.float32)).all()


def test_attention_takes_and_fills_bfloat16_of_ml_dtypes(cache: PagedKVCache) -> None:
    qkv = bfloat16(QKV)
    expected = np.from_dlpack(cache.attention(0, qkv.astype(np.float32)))
    got = cache.attention(0, qkv, out := bfloat16(np.zeros((3, HEADS, DIM))))
    assert str(got.dtype) == "bfloat16"
    assert np.abs(out.astype(np.float32) - expected).max() < 2**-8 * np.abs(expected).max()
    assert out.any()
    read_only = qkv.copy()
    read_only.flags.writeable = False
    cache.attention(0, read_only)
    for strided in (qkv[:, :, ::-1], np.asfortranarray(qkv)):
        with pytest.raises(ValueError, match="qkv must be contiguous"):
            cache.attention(0, strided)


def test_verification_and_drafts_take_bfloat16_of_ml_dtypes() -> None:
    rng = np.random.default_rng(1)
    logits = bfloat16(rng.standard_normal((4, 50)) * 3)
    tree = kvctl.TokenTree([1, 2, 3, 4], [-1, 0, 0, 2])
    options: dict[str, Any] = {"how": "independent", "n": 3, "root_positions": [5] * 4}
    options["request_ids"] = [7, 8, 9, 10]
    results, drafts = [], []
    for rows in (logits, logits.astype(np.float32)):
        results.append(
            kvctl.verify(
                rows, [tree], rule="target_only", drawn="deterministic", root_positions=[5], seed=3
            )
        )
        drafts.append(kvctl.draft.sample(rows, first_nodes=[1, 1, 1, 1], **options))
    assert results[0].tokens == results[1].tokens
    assert list(results[0].bonus) == list(results[1].bonus)
    assert (drafts[0].tokens == drafts[1].tokens).all()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (QKV.tolist(), "qkv must be a tensor .* got list"),
        (None, "qkv must be a tensor .* got NoneType"),
        (QKV.astype(object), "qkv cannot be read through DLPack: .* .dtype object"),
        (QKV.astype(">f4"), "qkv cannot be read through DLPack: .* .dtype >f4"),
        (QKV.astype("U5"), "qkv cannot be read through DLPack: .* .dtype <U5"),
        (QKV.astype(np.float64), "qkv must be float32, float16 or bfloat16, got float64"),
        (QKV.astype(np.complex64), "qkv must be float32, float16 or bfloat16, got complex64"),
    ],
    ids=lambda value: getattr(getattr(value, "dtype", None), "str", None),
)
def test_arrays_that_are_no_tensors(cache: PagedKVCache, array: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        cache.attention(0, array)


def test_outputs_that_cannot_be_written(cache: PagedKVCache) -> None:
    out = np.zeros((3, HEADS, DIM), np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out must be writeable"):
        cache.attention(0, QKV, out)
    with pytest.raises(ValueError, match="the attention output must be contiguous"):
        cache.attention(0, QKV, np.zeros((3, HEADS, 2 * DIM), np.float32)[..., ::2])
    with pytest.raises(TypeError, match=r"out must be a tensor .* got list"):
        cache.attention(0, QKV, out.tolist())
    with pytest.raises(TypeError, match=r"lse must be a tensor .* got float"):
        cache.attention(0, QKV, lse=1.0)


@pytest.mark.torch
def test_a_torch_tensor_is_read_whether_it_wants_a_gradient_or_not(cache: PagedKVCache) -> None:
    torch = pytest.importorskip("torch")
    qkv = torch.from_numpy(QKV.copy()).requires_grad_()
    got = np.from_dlpack(cache.attention(0, qkv))
    assert got.tobytes() == np.from_dlpack(cache.attention(0, QKV)).tobytes()


@pytest.mark.parametrize("dtype", [object, np.complex64, "U3"])
def test_logits_that_are_no_real_numbers(dtype: Any) -> None:
    tree = kvctl.TokenTree([1], [-1])
    with pytest.raises(TypeError, match="logits must be real numbers, got"):
        kvctl.verify(
            np.zeros((1, 5)).astype(dtype),
            [tree],
            rule="greedy",
            drawn="deterministic",
            sampling=kvctl.Sampling(temperature=0.0),
        )


def test_tensors_pass_as_they_are() -> None:
    tensor = tvm_ffi.from_dlpack(QKV)
    assert to_tensor(tensor) is tensor

"""The checking mode: infinities and NaN are found where K and V are written and logits come."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import tvm_ffi

import kvctl
from kvctl import Mask, PagedKVCache, TokenTree
from small_cache import DIM, KV_HEADS, LAYERS, QO_HEADS, kv, make_cache, rows

TOO_LARGE = {"float16": 1e5, "bfloat16": 3.4e38, "float32": np.inf, "int8": np.inf}


def attend(
    cache: PagedKVCache,
    parts: dict[int, int],
    bad: dict[tuple[int, int, int], float],
    **options: Any,
) -> None:
    """A step of all layers; `bad` sets a whole head: (layer, row, head of qkv) to a value."""
    qkv = rows(range(sum(parts.values()))).astype(np.float32)
    for (layer, row, head), value in bad.items():
        qkv[layer, row, head] = value
    with np.errstate(over="ignore"), cache.forward(list(parts), list(parts.values()), **options):
        for layer in range(LAYERS):
            cache.attention(layer, qkv[layer])


def prepared(**options: Any) -> PagedKVCache:
    cache = make_cache(**options)
    for seq_id in (4, 9):
        cache.add_sequence(seq_id)
    attend(cache, {4: 3, 9: 5}, {})
    return cache


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize(("part", "head"), [("K", QO_HEADS + 1), ("V", QO_HEADS + KV_HEADS)])
def test_what_a_page_cannot_hold_is_named(dtype: str, part: str, head: int) -> None:
    cache = prepared(dtype=dtype)
    before = cache.num_available_pages
    value = TOO_LARGE[dtype]
    cannot = "" if np.isinf(value) else f", which the cache's type, {dtype}, cannot hold"
    place = f"layer 1: {part} of sequence 9 at position 6 .KV head {(head - QO_HEADS) % KV_HEADS}."
    with kvctl.checking(), pytest.raises(ValueError, match=f"{place} is .*{cannot}"):
        attend(cache, {4: 2, 9: 3}, {(1, 3, head): value})
    assert (cache.in_forward, cache.sequence_length(4), cache.sequence_length(9)) == (False, 3, 5)
    assert cache.num_available_pages == before
    with kvctl.checking():
        attend(cache, {4: 2, 9: 3}, {})
    assert cache.sequence_length(9) == 8


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_node_of_a_tree_is_named_by_its_position(value: float) -> None:
    cache = prepared()
    masks = [Mask.tree([-1, 0, 0]), Mask.tree([-1, 0, 1])]
    with (
        kvctl.checking(),
        pytest.raises(ValueError, match="layer 0: K of sequence 4 at position 4"),
    ):
        attend(cache, {4: 3, 9: 3}, {(0, 2, QO_HEADS): value}, mask=masks)
    with (
        kvctl.checking(),
        pytest.raises(ValueError, match="layer 0: V of sequence 9 at position 7"),
    ):
        attend(cache, {4: 3, 9: 3}, {(0, 5, QO_HEADS + 3): value}, mask=masks)
    assert cache.pending_length(4) == cache.pending_length(9) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_element_of_an_int8_row_is_named(value: float) -> None:
    """It makes its whole head NaN, and is itself the one to tell of."""
    cache = prepared(dtype="int8")
    qkv = rows(range(2))
    qkv[0, 1, QO_HEADS + 1, 7] = value
    message = f"layer 0: K of sequence 4 at position 4 .KV head 1. is {value}$"
    with kvctl.checking(), pytest.raises(ValueError, match=message), cache.forward([4], [2]):
        cache.attention(0, qkv[0])
    with cache.forward([4], [2]):
        for layer in range(LAYERS):
            cache.attention(layer, qkv[layer])
    k = np.from_dlpack(cache.get_kv(4)[0])
    assert np.isnan(k[0, 4, 1]).all()
    assert np.isnan(k).sum() == DIM


@pytest.mark.parametrize("inline", [False, True])
def test_rotated_keys_are_checked_as_they_are_kept(inline: bool) -> None:
    cache = prepared(dtype="float16", rope=kvctl.Rope(inline=inline))
    with (
        kvctl.checking(),
        pytest.raises(ValueError, match="layer 0: K of sequence 4 at position 3"),
    ):
        attend(cache, {4: 1}, {(0, 0, QO_HEADS): 9e4})


def test_keys_that_are_given_beside_the_cache_are_checked() -> None:
    cache = prepared(dtype="float16")
    attend_shared = tvm_ffi.get_global_func(
        "vm.builtin.attention_kv_cache_attention_with_shared_kv"
    )
    q, k = np.ones((1, QO_HEADS, DIM), np.float32), np.ones((1, KV_HEADS, DIM), np.float32)
    arguments = [tvm_ffi.from_dlpack(part) for part in (q, k * 1e5, k, np.zeros_like(q))]
    with kvctl.checking(), pytest.raises(ValueError, match="1: K of sequence 9 at position 5"):
        with cache.forward([9], [1]):
            attend_shared(cache._handle, 1, 0.25, *arguments)


def test_by_default_nobody_looks() -> None:
    cache = prepared(dtype="float16")
    attend(cache, {4: 1}, {(0, 0, QO_HEADS): 1e5})
    assert np.isinf(kv(cache, 4).astype(np.float32)).any()


def test_queries_are_not_kept_and_not_checked() -> None:
    with kvctl.checking():
        attend(prepared(), {4: 1}, {(0, 0, 0): np.nan})


def verified(logits: np.ndarray, **options: Any) -> Any:
    trees = [TokenTree.chain([1, 2]), TokenTree([5, 6, 7], [-1, 0, 0])]
    return kvctl.verify(logits, trees, rule="greedy", drawn="deterministic", **options)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_are_named_by_sequence_row_and_position(value: float, dtype: str) -> None:
    logits = np.random.default_rng(0).standard_normal((5, 40)).astype(dtype)
    logits[:, 30:] = -np.inf  # tokens that are forbidden
    plain = verified(logits)
    with kvctl.checking():
        assert verified(logits).tokens == plain.tokens
    logits[4, 17] = value
    with kvctl.checking():
        with pytest.raises(
            ValueError, match="logits of sequence 1, row 2: token 17 has NaN or inf"
        ):
            verified(logits)
        with pytest.raises(ValueError, match="sequence 1, row 2 at position 21: token 17"):
            verified(logits, root_positions=[7, 20])
        with pytest.raises(ValueError, match="logits of sequence 4, row 0"):
            kvctl.sample(logits, sampling=kvctl.Sampling(temperature=0))


def test_rows_behind_a_stop_are_not_read() -> None:
    logits = np.zeros((5, 40), np.float32)
    logits[1] = np.nan
    options = {"sampling": kvctl.Sampling(temperature=0, stop_tokens=[2])}
    with kvctl.checking():
        verified(logits, **options)
        logits[0] = np.nan
        with pytest.raises(ValueError, match="sequence 0, row 0: token 0"):
            verified(logits, **options)


def test_blocks_nest_and_give_the_mode_back() -> None:
    cache = prepared(dtype="float16")
    bad = {(0, 0, QO_HEADS): 1e5}
    with kvctl.checking():
        with kvctl.checking(False):
            attend(cache, {4: 1}, bad)
        with pytest.raises(ValueError, match="layer 0"):
            attend(cache, {9: 1}, bad)
    attend(cache, {9: 1}, bad)


@pytest.mark.parametrize(
    ("value", "expected"), [(None, False), ("", False), ("0", False), ("1", True)]
)
def test_the_environment_turns_it_on(value: str | None, expected: bool) -> None:
    environment = {name: text for name, text in os.environ.items() if name != "KVCTL_CHECK"}
    if value is not None:
        environment["KVCTL_CHECK"] = value
    code = "import kvctl; from kvctl._ffi import functions; print(functions.checking.get())"
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == str(value == "1")

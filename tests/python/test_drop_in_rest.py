"""What few call of TVM's interface, behind ``kvctl.install()``: the same answers as TVM's cache."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from builtin_cache import Config
from test_drop_in import FORMS, Pair


def split(pair: Pair, qkv: np.ndarray) -> list[np.ndarray]:
    heads = pair.config.num_qo_heads
    return np.split(qkv, [heads, heads + pair.config.num_kv_heads], axis=1)


def with_a_past(config: Config) -> Pair:
    pair = Pair(config)
    pair.both("add", 0, 1)
    pair.forward({0: 21, 1: 6})
    return pair


@pytest.mark.parametrize("form", FORMS[::3])
def test_self_and_cross_attention_and_their_merge(form: Config) -> None:
    """A chunk attends to itself, then to the past, and the two are merged."""
    pair = with_a_past(form)
    pair.both("begin", [1, 0], [3, 5])
    for layer in range(form.num_layers):
        q, k, v = split(pair, pair.qkv(8)[layer])
        inside = pair.both("self_attention", layer, q, k, v)
        before = pair.both("cross_attention", layer, q)
        pair.both("merge", *inside, *before)
    pair.both("end")


@pytest.mark.parametrize("lengths", [[3, 5], [1, 1]], ids=["chunk", "decode"])
@pytest.mark.parametrize("form", FORMS[::3])
def test_a_layer_that_shares_the_kv_of_another(form: Config, lengths: list[int]) -> None:
    pair = with_a_past(form)
    total = sum(lengths)
    pair.both("begin", [1, 0], lengths)
    qkv = pair.qkv(total)[0]
    pair.both("attention", 0, qkv)
    _, k, v = split(pair, qkv)
    q, _, _ = split(pair, pair.qkv(total)[0])
    pair.both("shared_kv", 0, q, k, v)
    pair.both("end")


@pytest.mark.parametrize("rope", ["none", "normal", "inline"])
def test_layout_hash(rope: str) -> None:
    Pair(Config(rope=rope)).both("layout_hash")


@pytest.mark.parametrize("rope", ["none", "normal", "inline"])
@pytest.mark.parametrize("form", FORMS[::3])
def test_a_sequence_moves_to_another_cache(form: Config, rope: str) -> None:
    """What one cache exports the other imports, and goes on with it alike."""
    pair = with_a_past(replace(form, rope=rope))
    metadata = pair.other.metadata(), pair.tvm.metadata()
    assert metadata[0]["groups"] == metadata[1]["groups"]
    groups: list[Any] = [pair.both("export_group", group) for group in range(form.num_layers)]
    for cache, other in ((pair.tvm, metadata[0]), (pair.other, metadata[1])):
        cache.import_all(other, groups)
        assert cache.length(0) == 21
    pair.look(0)
    pair.forward({0: 4})
    pair.forward({0: 1})

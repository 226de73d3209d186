"""What few call of TVM's interface, behind ``kvctl.install()``: the same answers as TVM's cache."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from builtin_cache import Config, kvctl_cache
from cache_pair import FORMS, Pair, with_a_past


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


@pytest.mark.parametrize("layer", [0, 1])
def test_a_step_may_leave_layers_out(layer: int) -> None:
    """TVM's callers may attend to one layer, chains and trees; kvctl's own interface refuses it."""
    pair = Pair(Config())
    pair.both("add", 0)
    for length, parents in ((5, None), (1, None), (3, [-1, 0, 0])):
        pair.both("begin", [0], [length], parents)
        pair.both("attention", layer, pair.qkv(length)[layer])
        pair.both("end")
    pair.both("commit", [0], [2])
    assert pair.both("length", 0) == 8
    pair.both("begin", [0], [1])
    pair.both("attention", layer, pair.qkv(1)[layer])
    pair.both("end")


def test_minus_one_sinks_are_none() -> None:
    """Libraries say -1 for no sinks; callers of TVM's cache make 0 of it before they call."""
    caches = [kvctl_cache(Config(sliding_window=True, rope="inline")) for _ in range(2)]
    rng = np.random.default_rng(3)
    heads = caches[0].config.num_qo_heads + 2 * caches[0].config.num_kv_heads
    shape = (caches[0].config.num_layers, 24, heads, caches[0].config.head_dim)
    qkv = rng.standard_normal(shape, dtype=np.float32)
    seen = []
    for cache, sinks in zip(caches, (0, -1), strict=True):
        cache.add(0)
        cache.enable_window(0, 8, sinks)
        seen.append(cache.forward([0], [qkv])[0])
        with pytest.raises(Exception, match="-2"):
            cache.enable_window(0, 8, -2)
    np.testing.assert_array_equal(*seen)

"""TVM's cache and kvctl's behind TVM's functions: every call goes to both and must agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from builtin_cache import Config, compiler_or_skip, kvctl_cache, tvm_cache

FORMS = [
    pytest.param(Config(head_dim=head_dim, dtype=dtype), id=f"{dtype}-{head_dim}")
    for head_dim in (64, 128)
    for dtype in ("float32", "float16")
]


class Pair:
    """TVM's cache and another one; every call goes to both and must give the same."""

    def __init__(self, config: Config, *, other: Any = kvctl_cache) -> None:
        compiler_or_skip()
        self.config = config
        self.tvm, self.other = tvm_cache(config), other(config)
        self.rng = np.random.default_rng(5)
        self.tolerance = 2e-5 if config.dtype == "float32" else 4e-3

    def both(self, method: str, *args: Any) -> Any:
        expected = getattr(self.tvm, method)(*args)
        got = getattr(self.other, method)(*args)
        self.same(method, got, expected)
        return got

    def same(self, what: str, got: Any, expected: Any) -> None:
        if isinstance(expected, list | tuple):
            assert len(got) == len(expected), what
            for one, other in zip(got, expected, strict=True):
                self.same(what, one, other)
        elif isinstance(expected, np.ndarray) and expected.dtype.kind == "f":
            np.testing.assert_allclose(
                got, expected, rtol=self.tolerance, atol=self.tolerance, err_msg=what
            )
        else:
            np.testing.assert_array_equal(got, expected, err_msg=what)

    def qkv(self, length: int) -> np.ndarray:
        config = self.config
        heads = config.num_qo_heads + 2 * config.num_kv_heads
        shape = (config.num_layers, length, heads, config.head_dim)
        return self.rng.standard_normal(shape, dtype=np.float32).astype(config.dtype)

    def forward(self, lengths: dict[int, int], parents: list[list[int]] | None = None) -> None:
        self.both("forward", list(lengths), [self.qkv(n) for n in lengths.values()], parents)
        # The positions that a model may ask for are TVM's own count of what a window holds.
        if not self.config.sliding_window:
            self.same("positions", self.other.positions_seen, self.tvm.positions_seen)
        self.look(*lengths)

    def look(self, *seq_ids: int) -> None:
        self.both("total_length")
        for seq_id in seq_ids:
            # TVM shows K and V only where no layer slides.
            if not self.both("length", seq_id) or self.config.sliding_layers:
                continue
            (k, v), (tvm_k, tvm_v) = self.other.get_kv(seq_id), self.tvm.get_kv(seq_id)
            self.same("K", k, tvm_k)
            self.same("V", v, tvm_v)


def with_a_past(config: Config) -> Pair:
    """Return two sequences of 21 and 6 tokens in both caches."""
    pair = Pair(config)
    pair.both("add", 0, 1)
    pair.forward({0: 21, 1: 6})
    return pair

"""Sliding windows behind ``kvctl.install()``: the same calls, the same answers as TVM's cache."""

from __future__ import annotations

import pytest

from builtin_cache import Config
from test_drop_in import Pair


@pytest.mark.parametrize(("sinks", "rope"), [(0, "none"), (4, "none"), (20, "none"), (0, "inline")])
def test_a_window_on_a_sequence(sinks: int, rope: str) -> None:
    """Decoding past the window: TVM sees the sinks, the latest past up to the window, and itself.

    With inline RoPE TVM moves the sinks up to the window, where kvctl leaves them where they are;
    in normal mode all of TVM's tokens past the window have one and the same position.
    """
    pair = Pair(Config(sliding_window=True, rope=rope))
    pair.both("add", 0, 1)
    pair.both("enable_window", 0, 32, sinks)
    pair.forward({0: 7, 1: 3})
    for _ in range(80):
        pair.forward({0: 1, 1: 1})
    pair.both("remove", 0)
    pair.forward({1: 1})
    pair.both("remove", 1)
    assert pair.both("empty")


@pytest.mark.parametrize("rope", ["none", "normal"])
def test_windows_on_some_layers(rope: str) -> None:
    """Prefill and decode; a second chunk is left out, of which TVM's kernel can make NaN."""
    pair = Pair(Config(sliding_layers=(1,), rope=rope))
    pair.both("add", 0, 1)
    pair.forward({0: 20, 1: 5})
    for _ in range(30):
        pair.forward({0: 1, 1: 1})
    pair.both("popn", 0, 4)
    pair.forward({0: 1})

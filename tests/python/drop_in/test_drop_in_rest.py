"""What few call of TVM's interface, behind ``kvctl.install()``: the same answers as TVM's cache."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from builtin_cache import Config
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

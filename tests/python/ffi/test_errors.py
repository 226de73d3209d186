"""Errors of the C++ library as Python sees them."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable

import pytest

import kvctl


def cpp_frame(call: Callable[[], object], error: type[Exception]) -> traceback.FrameSummary:
    with pytest.raises(error) as caught:
        call()
    return traceback.extract_tb(caught.value.__traceback__)[-1]


def small_cache() -> kvctl.PagedKVCache:
    return kvctl.PagedKVCache.create(
        num_layers=1, num_qo_heads=1, num_kv_heads=1, head_dim=8, max_total_tokens=16
    )


def test_the_traceback_ends_at_the_line_of_cpp_that_threw():
    cache = small_cache()
    for call, error, room in [
        (lambda: cache.popn(3, 1), KeyError, "core/cache"),
        (lambda: cache.begin_forward([], []), ValueError, "core/cache"),
        (
            lambda: kvctl.RecurrentState.create(num_layers=0, init_values=[]),
            ValueError,
            "runtime/recurrent",
        ),
    ]:
        frame = cpp_frame(call, error)
        assert re.fullmatch(rf"{room}/\w+\.cc", frame.filename), frame
        assert frame.lineno is not None and frame.lineno > 1


def test_so_does_the_traceback_of_the_extension_module():
    frame = cpp_frame(lambda: kvctl.TokenTree([1, 2], [-1, 5]), ValueError)
    assert (frame.filename, frame.name) == ("core/tree/token_tree.cc", "TokenTree")
    assert frame.lineno is not None and frame.lineno > 1


def test_a_printed_traceback_names_no_folder_of_the_machine():
    cache = small_cache()
    with pytest.raises(KeyError) as caught:
        cache.popn(3, 1)
    lines = traceback.format_exception(caught.value)
    assert any(re.search(r'File "core/cache/sequence_table\.cc", line \d+', line) for line in lines)

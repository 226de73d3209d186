"""Calls of the runner that fail, also in the middle of the model, change nothing."""

from __future__ import annotations

import numpy as np
import pytest
import tvm_ffi

import kvctl
from loaded_runner import (
    PARENTS,
    TOKENS,
    TOLERANCE,
    TREE_TOKENS,
    array,
    assert_same_state,
    load,
    state,
)


def failing_calls():
    tree = kvctl.TokenTree.chain
    return {
        "unknown sequence": (KeyError, "8", lambda r: r.prefill([8], [[1]])),
        "unknown beside known": (KeyError, "8", lambda r: r.decode([0, 8], [1, 1])),
        "unknown in chunks": (KeyError, "8", lambda r: r.prefill([0, 8], [TOKENS[:40], [1]])),
        "unknown in verify": (KeyError, "8", lambda r: r.verify([0, 8], [tree([1]), tree([2])])),
        "no tokens": (
            ValueError,
            "no tokens for sequence 1",
            lambda r: r.prefill([0, 1], [[1], []]),
        ),
        "no sequences": (ValueError, "no sequences", lambda r: r.prefill([], [])),
        "twice": (ValueError, "0 is named twice", lambda r: r.decode([0, 0], [1, 1])),
        "counts": (ValueError, "2 sequences .* 1 prompts", lambda r: r.prefill([0, 1], [[1]])),
        "tree counts": (
            ValueError,
            "2 sequences .* 1 trees",
            lambda r: r.verify([0, 1], [tree([1])]),
        ),
        "token too large": (
            ValueError,
            r"token 256 for sequence 1 .*\[0, 256\)",
            lambda r: r.prefill([0, 1], [[1], [255, 256]]),
        ),
        "negative token": (ValueError, "token -1", lambda r: r.decode([0], [-1])),
        "drafted token": (ValueError, "token 300", lambda r: r.verify([0], [tree([1, 300])])),
        "token beyond int32": (ValueError, "4294967303", lambda r: r.decode([0], [2**32 + 7])),
        "fractions": (TypeError, "float64", lambda r: r.decode([0], [1.5])),
        "nested": (ValueError, "one dimension", lambda r: r.prefill([0], [[[1]]])),
        "prompt too long": (
            kvctl.OutOfPagesError,
            "101 new tokens need 7 more pages of 16 tokens, and 2 of the cache's 6 are free",
            lambda r: r.prefill([0], [(TOKENS * 2)[:101]]),
        ),
        "prompts too long together": (
            kvctl.OutOfPagesError,
            "2 of the cache's 6 are free",
            lambda r: r.prefill([0, 1], [TOKENS[:45], TOKENS[:45]]),
        ),
        "no page for a step": (
            kvctl.OutOfPagesError,
            "page",
            lambda r: r.verify([0, 1, 2], [tree(TOKENS[:10])] * 3),
        ),
        "tree larger than the chunk": (
            ValueError,
            "33 new tokens, .* prefill chunk of 32",
            lambda r: r.verify([0], [tree(TOKENS[:33])]),
        ),
        "positions": (
            ValueError,
            "position",
            lambda r: r.forward([0], [[1, 2]], positions=[[1]]),
        ),
    }


@pytest.mark.parametrize("case", failing_calls())
def test_a_call_that_fails_changes_nothing(tiny_model, case):
    kind, message, call = failing_calls()[case]
    runner = load(tiny_model, 0, 1, 2, max_total_tokens=96, prefill_chunk_size=32)
    runner.prefill([0, 1], [TOKENS[:30], TOKENS[:30]])
    before = state(runner)
    with pytest.raises(kind, match=message):
        call(runner)
    assert_same_state(before, state(runner))


class Interrupted:
    """Makes the model call number n of a kernel raise; the library must be loaded inside."""

    def __init__(self, name):
        self.name, self.countdown, self.calls = name, None, 0
        self.original = tvm_ffi.get_global_func(name)

    def __enter__(self):
        def kernel(*args):
            self.calls += 1
            if self.countdown is not None:
                self.countdown -= 1
                if self.countdown < 0:
                    self.countdown = None
                    raise RuntimeError("a kernel gave up")
            return self.original(*args)

        tvm_ffi.register_global_func(self.name, kernel, override=True)
        return self

    def __exit__(self, *_):
        tvm_ffi.register_global_func(self.name, self.original, override=True)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("at", [0, 1, 2, 3, 5])
def test_an_exception_in_the_middle_of_the_model_is_undone(tiny_model, reference, at, shared):
    with Interrupted("kvctl.model.silu_mul") as kernel:  # one call per layer, two layers
        runner = load(tiny_model, 0, 1, prefill_chunk_size=16)
    runner.prefill([0, 1], [TOKENS[:10], TOKENS[:5]])
    runner.cache.fork_sequence(0, 2)
    if not shared:  # each its own page: a page copied by a step that is undone stays copied
        runner.decode([0, 2], [1, 1])
        runner.cache.popn(0, 1)
        runner.cache.popn(2, 1)
    before = state(runner)
    calls = [
        lambda: runner.prefill([0, 1], [TOKENS[10:40], TOKENS[5:25]]),  # four chunks
        lambda: runner.verify([0, 1, 2], [kvctl.TokenTree(TREE_TOKENS, PARENTS)] * 3),  # two
        lambda: runner.decode([0, 1], [1, 2]),
    ]
    for call, num_calls in zip(calls, [8, 4, 2], strict=True):
        if at >= num_calls:
            continue
        kernel.countdown = at
        with pytest.raises(RuntimeError, match="a kernel gave up"):
            call()
        after = state(runner)
        assert_same_state((after[0], *before[1:]) if shared else before, after)
    after = array(runner.prefill([0, 1], [TOKENS[10:40], TOKENS[5:25]]))
    expected = reference.logits(TOKENS[:40])
    np.testing.assert_allclose(after, expected[[39, 24]], **TOLERANCE)

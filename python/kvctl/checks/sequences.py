"""Sequences of a check: they go when it is over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..engine.protocol import Runner


@contextmanager
def sequences(runner: Runner, prompts: Mapping[int, Sequence[int]]) -> Iterator[None]:
    """Have sequences with prompts, by their ids, for as long as a block runs.

    They go too where one of them finds no room.
    """
    with ExitStack() as stack:
        for id, tokens in prompts.items():
            runner.cache.add_sequence(id)
            stack.callback(runner.cache.remove_sequence, id)
            runner.prefill([id], [tokens])
        yield

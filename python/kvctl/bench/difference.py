"""Compare two generations, and tell a tie of logits from an error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ..engine.protocol import Runner

# Logits of two right float32 forwards of one model differ by less than this.
FLOAT_NOISE = 1e-3


@dataclass(frozen=True)
class Difference:
    """The first place where two texts differ.

    Attributes
    ----------
    index
        How many tokens are the same before it.
    tokens
        The token of each text there; -1 where a text has ended.
    gap
        How far the two tokens' logits are apart, in the model's own forward of what is the same.
    """

    index: int
    tokens: tuple[int, int]
    gap: float

    @property
    def is_tie(self) -> bool:
        """Whether the gap is within float noise, so that either token is right."""
        return self.gap <= FLOAT_NOISE


def first_difference(
    runner: Runner,
    prompt: Sequence[int],
    first: Sequence[int],
    second: Sequence[int],
    *,
    seq_id: int = 0,
) -> Difference | None:
    """Compare two greedy continuations of a prompt; None where they are the same.

    Parameters
    ----------
    runner
        The model; its cache needs room for the prompt and what is the same.
    prompt, first, second
        Tokens.
    seq_id
        A free id in the cache.
    """
    for index, (a, b) in enumerate(zip_longest(first, second, fillvalue=-1)):
        if a == b:
            continue
        if a == -1 or b == -1:
            return Difference(index, (a, b), float("inf"))
        runner.cache.add_sequence(seq_id)
        try:
            logits = runner.prefill([seq_id], [[*prompt, *first[:index]]])
        finally:
            runner.cache.remove_sequence(seq_id)
        row = np.from_dlpack(logits)[0]
        return Difference(index, (a, b), float(abs(row[a] - row[b])))
    return None

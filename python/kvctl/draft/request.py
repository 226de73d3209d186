"""One text that is being generated, as a drafter sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..verification import Sampling


@dataclass(eq=False)
class Request:
    """A text that runs, and what may be drafted for it now.

    The loop changes it from round to round; a drafter only reads it.

    Attributes
    ----------
    id : int
        Unique among the texts that run. A drafter keeps what it knows of a text under it.
    tokens : sequence of int
        Prompt and text so far; do not change it. The last one is the root of the next draft: no
        forward has seen it.
    prompt_length : int
        How many of the tokens are the prompt's.
    seq_id : int
        The text's sequence in the target's cache, which holds all tokens but the last.
    sampling : Sampling
        How the target's tokens are drawn; temperature 0 is greedy.
    seed, request_id : int
        They name the text's random numbers, together with the position of the root.
    limit : int
        The most nodes and the greatest depth that may be drafted this round, the root not counted;
        it may be 0.
    prompt_hidden : array or None
        While `Drafter.start` runs, if the drafter has ``hidden_layers``: (len(tokens) - 1, layers,
        width), the hidden states of all tokens but the root.
    """

    id: int
    tokens: Sequence[int]
    prompt_length: int
    seq_id: int
    sampling: Sampling
    seed: int = 0
    request_id: int = 0
    limit: int = 0
    prompt_hidden: Any = None

    @property
    def root(self) -> int:
        """The last token of the text."""
        return self.tokens[-1]

    @property
    def root_position(self) -> int:
        """The absolute position of the root, as `kvctl.verify` and `kvctl.draft.sample` take it."""
        return len(self.tokens) - 1

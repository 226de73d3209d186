"""What a generation is: its tokens, why it ended, and what it took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .stats import Statistics

FinishReason = Literal["stop_token", "stop_string", "grammar", "length", "context", "cache"]


@dataclass(frozen=True)
class Generation:
    """What was generated.

    Attributes
    ----------
    tokens
        The new tokens; the one that ended the text, where one did, is the last of them.
    finish_reason
        Why the text ended: ``"stop_token"``; ``"stop_string"``, one of `stop_strings` or whatever
        `stop_when` found; ``"grammar"``, no token may follow; ``"length"``, as many tokens as were
        asked for; ``"context"``, the model's context window is full; ``"cache"``, the cache is.
    statistics
        Counts and times.
    log_probs
        The log-probability of each new token under the processed target distribution (at
        temperature 0, under the distribution of temperature 1); None unless asked for.
    """

    tokens: list[int]
    finish_reason: FinishReason
    statistics: Statistics
    log_probs: list[float] | None = None

    @property
    def stopped(self) -> bool:
        """Whether the text ended itself, at a stop or with its grammar, and not at a limit."""
        return self.finish_reason in ("stop_token", "stop_string", "grammar")

"""A drafter that drafts nothing, and keeps the hidden states of what is generated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...draft import Budget, Draft, Drafter, Request, RoundResult
from ...draft.arrays import to_host
from ...models.checkpoints.bfloat16 import to_bfloat16


class Recorder(Drafter):
    """Collects the hidden states of every token of a text but its last.

    Generation computes them anyway, so that collecting costs no forward of its own.

    Parameters
    ----------
    layers
        The target's layers whose outputs are kept.
    """

    def __init__(self, layers: Sequence[int]) -> None:
        self.hidden_layers = tuple(layers)
        #: By the random stream of a text: (tokens - 1, layers, width), the bits of bfloat16.
        self.hidden: dict[int, list[npt.NDArray[np.uint16]]] = {}

    def start(self, request: Request) -> None:
        """Keep the prompt's; a text that comes back brings all that it had."""
        self.hidden[request.request_id] = [_bits(request.prompt_hidden)]

    def propose(self, requests: Sequence[Request], budget: Budget) -> list[Draft]:
        """Draft nothing."""
        return [Draft.nothing(request.root) for request in requests]

    def observe(self, results: Sequence[RoundResult]) -> None:
        """Keep those of the round."""
        for result in results:
            self.hidden[result.request.request_id].append(_bits(result.hidden))

    def finish(self, request: Request) -> None:
        """Keep what there is: it is taken after the generation."""
        return

    def take(self, request_id: int) -> npt.NDArray[np.uint16]:
        """Return a text's, and forget them."""
        return np.concatenate(self.hidden.pop(request_id))


def _bits(hidden: Any) -> npt.NDArray[np.uint16]:
    return to_bfloat16(np.asarray(to_host(hidden), np.float32))

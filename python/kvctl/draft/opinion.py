"""What a drafter thinks of tokens that it does not draft."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Opinion(Protocol):
    """How likely a drafter believes any token to be, after the nodes of its draft that it extended.

    A drafter that computes a distribution drafts the likeliest tokens of it, and knows of all
    others too how likely they are. `MixedDrafter` asks it about the tokens of other drafters.
    """

    def probability(self, node: int, token: int) -> float | None:
        """Return the probability of a token after a node of the draft's tree.

        It is None where the drafter did not extend the node, or does not know the token. What is no
        probability, NaN too, is refused with a `ValueError`.
        """
        ...


class OfNodes:
    """An opinion on the nodes of a larger tree, for a draft that has some of them.

    Parameters
    ----------
    opinion
        On the larger tree.
    nodes
        Which of its nodes those of the draft are.
    """

    def __init__(self, opinion: Opinion, nodes: Sequence[int]) -> None:
        self._opinion, self._nodes = opinion, nodes

    def probability(self, node: int, token: int) -> float | None:
        """Return the probability of a token after a node of the smaller tree."""
        return self._opinion.probability(self._nodes[node], token)

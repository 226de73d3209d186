"""What a drafter proposes for one text: a tree, how it was drawn, and from what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..tree import TokenTree
from .opinion import Opinion


@dataclass(frozen=True, eq=False)
class Draft:
    """A drafted tree and what a rule must know of it.

    Attributes
    ----------
    tree : TokenTree
        Its root is the last token of the text. The root alone asks for a plain step.
    drawn : str or sequence of str
        How its nodes were drawn, one name for all or one for each node, as in `kvctl.verify`. What
        is declared here must be true: a rule that trusts it is biased otherwise.
    probs : array, (ids, probs) or None
        (R, V), a row for each row of the tree: the distribution that the children of its node were
        drawn from. Or a pair (ids, probs) of (R, k) arrays for sparse rows. On the host or on the
        target's device. Not needed for deterministic and coupled nodes.
    probs_per_node : array, (ids, probs) or None
        Instead of `probs`: (N, V), the distribution of each node itself, given its earlier
        siblings.
    rates : sequence of float or None
        (N,) the expected probability that a node and all above it are accepted; the root's is not
        read. With them the loop verifies only the nodes that pay (`Budget.choose`), also where the
        tree has more nodes than the limit. It does so only where that cannot bias the rule: the
        nodes are deterministic, or the rule follows the target alone (greedy, target_only). Without
        them, or under other rules, the tree is verified as it is.
    opinion : Opinion or None
        What its drafter thinks of other tokens after these nodes; None where it does not say.
        `MixedDrafter` rates other drafters' nodes by it.
    """

    tree: TokenTree
    drawn: str | Sequence[str] = "deterministic"
    probs: Any = None
    probs_per_node: Any = None
    rates: Sequence[float] | None = None
    opinion: Opinion | None = None

    @classmethod
    def nothing(cls, root: int) -> Draft:
        """Return the root alone, which asks for a plain step."""
        return cls(TokenTree.chain([root]))

    @property
    def deterministic(self) -> bool:
        """Whether no node was drawn at random."""
        if isinstance(self.drawn, str):
            return self.drawn == "deterministic"
        return all(name == "deterministic" for name in self.drawn[1:])

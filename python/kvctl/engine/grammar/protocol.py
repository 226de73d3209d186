"""What the decoding loop needs of a grammar matcher."""

from __future__ import annotations

from typing import Any, Protocol


class Grammar(Protocol):
    """A matcher: it knows which tokens may follow the tokens that it accepted so far.

    ``xgrammar.GrammarMatcher`` is one (arXiv 2411.15100), and so is any object with these methods.
    A matcher has a state, so each text needs one of its own. `kvctl.generate` calls it from one
    thread. To look along a path of a drafted tree, it accepts the path's tokens and then takes
    them back.
    """

    def accept_token(self, token_id: int) -> bool:
        """Go on by a token; return whether the grammar allows it. If not, nothing changes."""
        ...

    def fill_next_token_bitmask(self, bitmask: Any, index: int = 0) -> Any:
        """Write which tokens may come next.

        Parameters
        ----------
        bitmask
            (rows, W) int32 on the host, W = ceil(vocabulary / 32): bit i of word j allows token
            32 j + i. All bits are 1 before.
        index
            The row to write. What is returned is not read.
        """
        ...

    def rollback(self, num_tokens: int) -> None:
        """Take the last tokens back, also from a grammar that has ended."""
        ...

    def is_terminated(self) -> bool:
        """Return whether the grammar has ended: no token may follow, and no mask is asked for."""
        ...

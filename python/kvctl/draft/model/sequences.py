"""Where a drafting model keeps the tokens of the texts that it drafts for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ..request import Request

if TYPE_CHECKING:
    import numpy.typing as npt


class Sequences(Protocol):
    """Sequences of a cache, one for each text, as `GrowingDrafter` uses them."""

    def __contains__(self, request: Request) -> bool: ...

    def id_of(self, request: Request) -> int:
        """Return the sequence of a text that has one."""
        ...

    def depth_room(self, request: Request) -> int | None:
        """Return how many nodes may follow the root on a path; None where nothing limits it."""
        ...

    def catch_up(self, requests: Sequence[Request]) -> dict[int, Any]:
        """Forward what sequences lack, the roots too.

        Returns
        -------
        dict
            By the ids of texts, what the model says after their roots: (V,), on the host. Texts for
            which there is no room are missing.
        """
        ...

    def grow(
        self, ids: Sequence[int], tokens: Sequence[Sequence[int]], parents: Sequence[Sequence[int]]
    ) -> npt.NDArray[Any] | None:
        """Forward new nodes of the trees behind the roots.

        Parameters
        ----------
        ids, tokens
            Sequences, and the new nodes of each.
        parents
            Their parents among the nodes grown so far; -1 is the root.

        Returns
        -------
        numpy.ndarray or None
            (nodes, V) float32, tree after tree; None, and nothing has changed, where there is no
            room.
        """
        ...

    def leave_to_target(self, requests: Sequence[Request]) -> None:
        """Make room for verification: the trees have been grown."""
        ...

    def keep(self, kept: dict[int, list[int]]) -> None:
        """Keep the named grown nodes of each sequence, and drop its others."""
        ...

    def drop_pending(self, requests: Iterable[Request]) -> None:
        """Drop what is pending: a round was given up."""
        ...

    def finish(self, request: Request) -> None:
        """Forget a text."""
        ...

"""What is noted of a generation: its times, and what became of its drafts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .result import Round, Times

if TYPE_CHECKING:
    from ..draft import Budget, Draft, Drafter, Request, RoundResult
    from ..engine.generation import Generation
    from ..tree import TokenTree


class _Noted(NamedTuple):
    tree: TokenTree
    nodes: Sequence[int]
    accepted: list[int]
    emitted: int


class RecordingDrafter:
    """A `Drafter` that passes every call on and keeps the outcome of the rounds.

    Rounds are known by their request's ``request_id``, until `clear`.

    Noting takes about a microsecond a round: what can wait is done after the generation.

    Parameters
    ----------
    drafter
        The one that drafts.
    """

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self._noted: dict[int, list[_Noted]] = {}

    def __getattr__(self, name: str) -> Any:
        """Return what the loop asks of the drafter itself: what it wants of the target, say."""
        return getattr(self._drafter, name)

    def start(self, request: Request) -> None:
        """Pass it on."""
        self._noted[request.request_id] = []
        self._drafter.start(request)

    def propose(self, requests: Sequence[Request], budget: Budget) -> Sequence[Draft]:
        """Pass it on."""
        return self._drafter.propose(requests, budget)

    def observe(self, results: Sequence[RoundResult]) -> None:
        """Note the outcome, and pass it on."""
        for one in results:
            self._noted[one.request.request_id].append(
                _Noted(one.draft.tree, one.nodes, one.accepted, len(one.emitted))
            )
        self._drafter.observe(results)

    def finish(self, request: Request) -> None:
        """Pass it on."""
        self._drafter.finish(request)

    def clear(self) -> None:
        """Forget all rounds; the drafter keeps what it learnt."""
        self._noted.clear()

    def rounds(self, request_id: int) -> list[Round]:
        """Return the rounds of a text."""
        return [_round(one) for one in self._noted.get(request_id, [])]

    def trees(self, request_id: int) -> list[tuple[list[int], list[int], list[int]]]:
        """Return of each round the verified tree's tokens and parents, and its accepted nodes."""
        return [_verified(one) for one in self._noted.get(request_id, [])]


def times_of(generation: Generation) -> Times:
    """Return what a generation took."""
    stats = generation.statistics
    return Times(
        stats.prefill_seconds,
        stats.start_seconds,
        stats.draft_seconds,
        stats.forward_seconds,
        stats.verify_seconds,
        stats.rollback_seconds,
        stats.replay_seconds,
    )


def plain_rounds(generation: Generation) -> list[Round]:
    """Return the rounds of a generation without a drafter."""
    return [Round(0, 0, 0, 0, 1)] * (len(generation.tokens) - 1)


def _round(noted: _Noted) -> Round:
    tree, nodes, accepted, emitted = noted
    if len(nodes) == 1:
        return Round(0, 0, 0, 0, emitted)
    last = accepted[-1] if accepted else 0
    parents = tree.parents
    # Behind the last accepted node drafts were tried, unless the text ended with it.
    tried = emitted > len(accepted) and any(parents[node] == last for node in nodes)
    depth = int(tree.depths[list(nodes)].max())
    return Round(len(nodes) - 1, depth, len(accepted) + tried, len(accepted), emitted)


def _verified(noted: _Noted) -> tuple[list[int], list[int], list[int]]:
    tree, nodes, accepted, _ = noted
    new = {-1: -1} | {int(node): i for i, node in enumerate(nodes)}
    return (
        [int(tree.tokens[node]) for node in nodes],
        [new[int(tree.parents[node])] for node in nodes],
        [new[node] for node in accepted],
    )

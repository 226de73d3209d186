"""One tree from several drafters."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..arrays import as_array
from ..budget import Budget
from ..draft import Draft
from ..identity import identity_of
from ..request import Request
from ..round_result import RoundResult
from .agreement import Agreement
from .merge import Merged, merge

if TYPE_CHECKING:
    from ..drafter import Drafter

# What a draft promises is left to itself only where its first token is right as often as this: else
# a drafter that takes time is worth asking, which drafts for the case that it is wrong, and mostly
# says whether it is. That takes a tenth of a plain step, and a wrong chain most of one.
_SURE = 0.7


class MixedDrafter:
    """Verifies what several drafters propose as one tree: ``a | b | c``.

    Nodes that are equal are verified once. A node is rated as the drafter that believes most in it
    does, and by how often tokens were right that several drafters proposed, or only one of them.
    What was drawn at random keeps its place and comes before what was not, so that each node can be
    declared as it was drawn; of equal siblings a deterministic one is left out, which no rule is
    biased by. Where there are more nodes than the limit, later drafters lose theirs.

    Drafters that take the time of a model (``costs_time``) are asked last, with a budget that says
    what the others' drafts promise, as far as their first tokens are nearly sure. Those that may
    leave a round out do so where their own drafts promise no more, and catch up when they draft
    again.

    Every drafter learns from every round as if it had drafted alone.

    Parameters
    ----------
    drafters
        At least one. Of those that draw at random, at most one may give ``probs`` other than for
        independent drafts; the others give ``probs_per_node``.

    Raises
    ------
    ValueError
        If there is no drafter.

    Examples
    --------
    >>> drafter = kvctl.draft.LookupDrafter() | kvctl.draft.SuffixDrafter()
    >>> len(drafter.drafters)
    2
    """

    def __init__(self, *drafters: Drafter) -> None:
        self.drafters: tuple[Drafter, ...] = ()
        for one in drafters:
            self.drafters += one.drafters if isinstance(one, MixedDrafter) else (one,)
        if not self.drafters:
            raise ValueError("a mixed drafter needs at least one drafter")
        layers = {layer for one in self.drafters for layer in one.hidden_layers}
        self.hidden_layers = tuple(sorted(layers))
        self.wants_logits = any(one.wants_logits for one in self.drafters)
        self.costs_time = any(one.costs_time for one in self.drafters)
        numbers = range(len(self.drafters))
        self._order = sorted(numbers, key=lambda i: self.drafters[i].costs_time)
        named = [name for one in self.drafters if (name := identity_of(one)) is not None]
        self.identity = " + ".join(named) or None
        self._agreement = Agreement()
        self._merged: dict[int, Merged] = {}

    def start(self, request: Request) -> None:
        """Begin a text with every drafter."""
        for one in self.drafters:
            mine = request
            if request.prompt_hidden is not None:
                mine = copy(request)
                mine.prompt_hidden = self._layers(request.prompt_hidden, one)
            one.start(mine)

    def propose(self, requests: Sequence[Request], budget: Budget) -> list[Draft]:
        """Merge what the drafters propose for each text."""
        proposals: dict[int, Sequence[Draft]] = {}
        for i in self._order:
            if proposals and self.drafters[i].costs_time:
                promised = _promise(requests, list(proposals.values()), budget)
                proposals[i] = self.drafters[i].propose(requests, budget.beside(promised))
            else:
                proposals[i] = self.drafters[i].propose(requests, budget)
        parts = [proposals[i] for i in range(len(self.drafters))]
        self._merged = {
            request.id: merge([drafts[i] for drafts in parts], request.limit, self._agreement)
            for i, request in enumerate(requests)
        }
        return [self._merged[request.id].draft for request in requests]

    def observe(self, results: Sequence[RoundResult]) -> None:
        """Tell every drafter what became of its own draft."""
        for i, one in enumerate(self.drafters):
            one.observe([self._part(result, i, one) for result in results])
        for result in results:
            self._merged.pop(result.request.id).learn(result.emitted, self._agreement)

    def finish(self, request: Request) -> None:
        """Forget a text."""
        self._merged.pop(request.id, None)
        for one in self.drafters:
            one.finish(request)

    def __or__(self, other: Drafter) -> MixedDrafter:
        """Return the drafter of these and another one."""
        return MixedDrafter(self, other)

    def _part(self, result: RoundResult, i: int, drafter: Drafter) -> RoundResult:
        """Return the result of a round as one drafter sees it."""
        merged = self._merged[result.request.id]
        draft, places = merged.parts[i], merged.places[i]
        hidden = self._layers(result.hidden, drafter)
        if draft is merged.draft and hidden is result.hidden and result.logits is None:
            return result
        rows = {node: row for row, node in enumerate(result.nodes)}
        nodes = [node for node, place in enumerate(places) if place in rows]
        logits = None
        if result.logits is not None and drafter.wants_logits:
            logits = as_array(result.logits)[[rows[places[node]] for node in nodes]]
        return replace(
            result,
            draft=draft,
            nodes=nodes,
            logits=logits,
            accepted=_own_path(draft, nodes, places, result),
            hidden=hidden,
        )

    def _layers(self, hidden: Any, drafter: Drafter) -> Any:
        """Return a drafter's layers of the hidden states of all."""
        if hidden is None or not drafter.hidden_layers:
            return None
        if drafter.hidden_layers == self.hidden_layers:
            return hidden
        mine = [self.hidden_layers.index(layer) for layer in drafter.hidden_layers]
        return as_array(hidden)[:, mine]


def _promise(
    requests: Sequence[Request], proposals: Sequence[Sequence[Draft]], budget: Budget
) -> float:
    """Return what the better of the drafts of each text promise together; 1 without sure ones."""
    best: list[Sequence[float]] = []
    for drafts in zip(*proposals, strict=True):
        rates = [draft.rates[1:] for draft in drafts if draft.rates is not None]
        better = max(rates, key=sum, default=())
        best.append(better if max(better, default=0.0) >= _SURE else ())
    return max(budget.promised, budget.promise(requests, best))


def _own_path(
    draft: Draft, verified: Sequence[int], places: Sequence[int], result: RoundResult
) -> list[int]:
    """Return a part's nodes along the accepted path, as far as it has them."""
    tokens, parents = draft.tree.tokens.tolist(), draft.tree.parents.tolist()
    path, node = [], 0
    for accepted, token in zip(result.accepted, result.emitted, strict=False):
        children = [one for one in verified if parents[one] == node and tokens[one] == token]
        if not children:
            break
        # Of equal siblings that were drawn apart, the one that was accepted.
        node = next((one for one in children if places[one] == accepted), children[0])
        path.append(node)
    return path

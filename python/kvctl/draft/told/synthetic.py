"""Drafting with an acceptance of your choice, for studies of systems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...tree import TokenTree
from ...verification.enumeration import DraftedTree
from ..budget import Budget
from ..draft import Draft
from ..drafter import Drafter
from ..request import Request
from ..round_result import RoundResult
from .answers import Answers


class SyntheticDrafter(Drafter):
    """Drafts chains that are accepted at given rates, to see what such a drafter would bring.

    There are two ways to have an acceptance without a drafter that earns it:

    - With the `answers`, a drafted token is the right one with the probability of its depth, else
      another one. Verification is as always, so **the text is the model's**. Rates hold where the
      rule follows the target's own choice (greedy, target_only).
    - Without them, the acceptance is decided by a coin, for which ``rule=drafter.rule`` must be
      given to `kvctl.generate`. **The text is not the model's**: accepted tokens are arbitrary.
      Under any other rule the generation is refused after the first round.

    Parameters
    ----------
    rates
        (k,) for each depth, the probability that a draft there is accepted if all before it were.
        A chain has k drafted tokens, or as many as are allowed.
    answers
        The new tokens of each prompt, in the order of the prompts.
    seed
        Of the coins, which depend on the request and the position alone.

    Raises
    ------
    ValueError
        If a rate is not in [0, 1].

    Examples
    --------
    >>> drafter = kvctl.draft.SyntheticDrafter([0.8, 0.7, 0.6])
    >>> drafter.expected_tokens  # of a round: 1 + 0.8 + 0.8 * 0.7 + 0.8 * 0.7 * 0.6
    2.696
    """

    def __init__(
        self,
        rates: Sequence[float],
        *,
        answers: Sequence[Sequence[int]] | None = None,
        seed: int = 0,
    ) -> None:
        self.rates = [float(rate) for rate in rates]
        for depth, rate in enumerate(self.rates):
            if not 0 <= rate <= 1:
                raise ValueError(f"rates[{depth}] must be in [0, 1], got {rate}")
        self.seed = seed
        self._answers = None if answers is None else Answers(answers)
        self._ruled = False

    @property
    def expected_tokens(self) -> float:
        """The mean number of tokens of a round with all of the chain."""
        return float(1.0 + np.cumprod(self.rates).sum())

    def propose(self, requests: Sequence[Request], budget: Budget) -> list[Draft]:
        """Draft a chain for each text."""
        return [self._propose(request) for request in requests]

    def observe(self, results: Sequence[RoundResult]) -> None:
        """Refuse a generation that is verified by another rule than the coin.

        Raises
        ------
        RuntimeError
            If there are no answers and the rule is not `rule`.
        """
        if self._answers is None and self.rates and not self._ruled:
            raise RuntimeError(
                "SyntheticDrafter without answers drafts arbitrary tokens, which only "
                "rule=drafter.rule accepts, and then the text is not the model's; for the model's "
                "text give it the answers"
            )

    def rule(self, drafted: DraftedTree, rng: Any) -> tuple[int, int]:
        """Accept by coin: a rule for `kvctl.generate`, whose text is not the model's."""
        self._ruled = True
        node = 0
        while node + 1 < len(drafted.tree) and rng.bernoulli(self.rates[node], node + 1):
            node += 1
        return node, rng.categorical(drafted.p(node), node)

    def _propose(self, request: Request) -> Draft:
        length = min(request.limit, len(self.rates))
        if self._answers is None:
            return Draft(TokenTree.chain([request.root] * (1 + length)))
        right = self._answers.ahead(request, length)
        coins = np.random.default_rng(
            [abs(self.seed), abs(request.request_id), request.root_position]
        ).random(len(right))
        tokens = [
            token if coin < rate else _another(token)
            for token, coin, rate in zip(right, coins, self.rates, strict=False)
        ]
        return Draft(TokenTree.chain([request.root, *tokens]))


def _another(token: int) -> int:
    """Return a token of any vocabulary that is not this one."""
    return token - 1 if token > 0 else 1

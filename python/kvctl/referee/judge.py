"""One rule on random models: the mean tokens of a round, and where its text is not the target's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..testing.distribution import Float64, joint_distribution, tree_drafter
from ..verification.enumeration import Rule
from .models import RandomModel

#: The drafted trees, as the parents of their nodes.
SHAPES = {
    "chain of 3": (-1, 0, 1, 2),
    "3 siblings": (-1, 0, 0, 0),
    "2 paths of 2": (-1, 0, 0, 1, 2),
}
#: A larger difference of a probability is no rounding.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Counterexample:
    """A model on which a rule's text has another distribution than the target's.

    Attributes
    ----------
    model : RandomModel
        On which it happened.
    tokens : tuple of int
        The first tokens of a text.
    target, emitted : float
        Their probability under the target, and as emitted.
    """

    model: RandomModel
    tokens: tuple[int, ...]
    target: float
    emitted: float

    def __str__(self) -> str:
        return (
            f"seed {self.model.seed}: tokens {list(self.tokens)} come with probability "
            f"{self.emitted:.4f} instead of {self.target:.4f}"
        )


@dataclass(frozen=True)
class Verdict:
    """What a rule did on one shape of tree.

    Attributes
    ----------
    mean_emitted : float
        Exact mean tokens of a round, over all models.
    max_difference : float
        The largest difference of the probability of a text's beginning from the target's.
    counterexample : Counterexample or None
        Where that difference is, if it is no rounding.
    """

    mean_emitted: float
    max_difference: float
    counterexample: Counterexample | None

    @property
    def lossless(self) -> bool:
        """Whether no difference was found."""
        return self.counterexample is None


def judge(
    rule: str | Rule, how: str, parents: Sequence[int], models: Sequence[RandomModel]
) -> Verdict:
    """Enumerate every draft and every decision of a rule on each model.

    Parameters
    ----------
    rule
        A name of `kvctl.verify`, or a function as it takes.
    how
        How siblings are drawn: "independent", "without_replacement" or "deterministic".
    parents
        The shape of the drafted tree.
    models
        At least one.

    Raises
    ------
    ValueError
        If there is no model, or the rule raises on a tree of that shape.
    """
    if not models:
        raise ValueError("judge needs at least one model")
    means, worst, example = [], 0.0, None
    for model in models:
        found = joint_distribution(
            tree_drafter(parents, model.draft, how), model.target, rule=rule, check=False
        )
        means.append(found.mean_emitted)
        if found.max_difference > worst:
            worst = found.max_difference
            if worst > TOLERANCE:
                example = _counterexample(model, found.target, found.distribution)
    return Verdict(float(np.mean(means)), worst, example)


def _counterexample(model: RandomModel, target: Float64, emitted: Float64) -> Counterexample:
    """Return the shortest beginning of a text that shows the largest difference of its length."""
    for length in range(1, target.ndim + 1):
        rest = tuple(range(length, target.ndim))
        expected, found = target.sum(axis=rest), emitted.sum(axis=rest)
        at = np.unravel_index(int(np.abs(expected - found).argmax()), expected.shape)
        if abs(expected[at] - found[at]) > TOLERANCE or length == target.ndim:
            break
    return Counterexample(model, tuple(map(int, at)), float(expected[at]), float(found[at]))

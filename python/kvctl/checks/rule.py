"""A rule of the user's, enumerated on random models beside the shipped ones."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..referee import SHAPES, RandomModel, Verdict, judge
from ..verification.enumeration import Rule

#: The shipped rules that are lossless for each way of drawing, the best last.
_OURS = {
    "independent": ("target_only", "recursive", "traversal"),
    "without_replacement": ("target_only", "recursive", "traversal"),
    "deterministic": ("target_only",),
}


@dataclass(frozen=True)
class RuleCheck:
    """A rule on one shape of tree.

    Attributes
    ----------
    shape : str
        One of `kvctl.referee.SHAPES`.
    verdict : Verdict or None
        What was found; None if the rule raised.
    error : str
        What it raised.
    ours : dict
        The mean tokens of a round under shipped rules, on the same models.
    """

    shape: str
    verdict: Verdict | None
    error: str
    ours: dict[str, float]


def check_rule(rule: Rule, drawn: str, models: Sequence[RandomModel]) -> Iterator[RuleCheck]:
    """Enumerate a rule on every shape.

    Parameters
    ----------
    rule
        As `kvctl.verify` takes it.
    drawn
        How the drafts are drawn that it is for.
    models
        Pairs of random models.

    Raises
    ------
    ValueError
        If `drawn` is none of "independent", "without_replacement" and "deterministic".
    """
    if drawn not in _OURS:
        raise ValueError(f"drawn must be {', '.join(_OURS)}; got {drawn!r}")
    for shape, parents in SHAPES.items():
        ours = {name: judge(name, drawn, parents, models).mean_emitted for name in _OURS[drawn]}
        try:
            yield RuleCheck(shape, judge(rule, drawn, parents, models), "", ours)
        except Exception as error:  # the user's rule may raise anything
            yield RuleCheck(shape, None, f"{type(error).__name__}: {error}", ours)


def import_rule(name: str) -> Rule:
    """Return the function that ``module:function`` names.

    Raises
    ------
    ValueError
        If it cannot be imported or is no function.
    """
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise ValueError(f"a rule is named as module:function, not {name!r}")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the rule {name} cannot be imported: {error}") from error
    if not callable(found):
        raise ValueError(f"{name} is no function")
    rule: Rule = found
    return rule

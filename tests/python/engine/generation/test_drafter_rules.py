"""Drafters that choose by value keep the joint distribution of four tokens under every rule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from drafters import Always
from fake_heads import TableHead, TableMedusa
from kvctl.draft import (
    HeadDrafter,
    JacobiDrafter,
    LookaheadDrafter,
    MedusaDrafter,
    SuffixDrafter,
    SuffixStore,
    TokenRecyclingDrafter,
)
from table_world import DRAFT, LIMIT, joint, statistic


def suffix():
    store = SuffixStore(1000)
    store.extend([[0, 0, 1, 2, 1, 1, 0, 2], [0, 2, 2, 0, 1, 0, 0], [0, 1, 1, 1, 2, 0, 1]])
    return Always(SuffixDrafter(store, learn=False, max_length=6))


def head(**shape):
    return HeadDrafter(TableHead(DRAFT), length=2, **shape)


def medusa():
    return Always(MedusaDrafter(TableMedusa(), candidates=2, nodes=5, adapt=False))


CASES = [
    ("traversal", suffix),
    ("recursive", lambda: Always(TokenRecyclingDrafter(candidates=2, nodes=6))),
    ("traversal", lambda: LookaheadDrafter(window=2, n=3, guesses=2)),
    ("block", lambda: JacobiDrafter(length=3)),
    ("token_wise", lambda: JacobiDrafter(length=3)),
    ("recursive", lambda: suffix() | TokenRecyclingDrafter(candidates=2, nodes=4)),
    ("recursive", lambda: head(branching=2, beam=2, nodes=3)),
    ("traversal", medusa),
    ("traversal", lambda: head(branching=2, how="without_replacement") | suffix()),
    ("recursive", lambda: head(how="independent") | medusa()),
]


@pytest.mark.parametrize(("rule", "make"), CASES)
def test_the_joint_distribution_of_four_tokens(rule, make):
    counts, expected, accepted = joint(rule, make())
    assert accepted > 1000
    assert statistic(counts, expected) < LIMIT


class Liar(Always):
    """Says that tokens were drawn at random which were chosen by value."""

    def propose(self, requests, budget):
        return [
            replace(one, drawn="independent", probs=np.full((len(one.tree), 3), 1 / 3))
            for one in super().propose(requests, budget)
        ]


@pytest.mark.parametrize(
    ("rule", "make"),
    [
        ("traversal", lambda: suffix().drafter),
        ("recursive", lambda: TokenRecyclingDrafter(candidates=2, nodes=6)),
        ("block", lambda: JacobiDrafter(length=3)),
        ("traversal", lambda: head(branching=2)),
        ("recursive", lambda: medusa().drafter),
    ],
)
def test_the_same_drafters_are_seen_where_they_lie_about_how_they_drew(rule, make):
    counts, expected, _ = joint(rule, Liar(make()))
    assert statistic(counts, expected) > 5 * LIMIT

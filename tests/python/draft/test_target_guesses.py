"""Drafters that live from the target's logits: token recycling, Jacobi and lookahead."""

from __future__ import annotations

import numpy as np
import pytest

import kvctl
from fake_runner import VOCABULARY, FakeRunner
from kvctl.draft import (
    Budget,
    JacobiDrafter,
    LookaheadDrafter,
    MixedDrafter,
    Request,
    RoundCost,
    ScriptedDrafter,
    TokenRecyclingDrafter,
)
from kvctl.draft.guesses.ngram_pool import NgramPool

PROMPTS = [[i, 1, 2] for i in range(4)]
TOKENS = 80


def counting(context):
    """Return a next token that depends on the last one alone: 3, 6, 9, ..."""
    return (context[-1] + 3) % VOCABULARY


def generate(drafter, runner=None, **options):
    return kvctl.generate(
        runner or FakeRunner(order=1), PROMPTS, max_new_tokens=TOKENS, drafter=drafter, **options
    )


FAMILIES = {
    "recycling": lambda: TokenRecyclingDrafter(nodes=12),
    "jacobi": lambda: JacobiDrafter(length=4),
    "lookahead": lambda: LookaheadDrafter(window=3, n=3, guesses=3),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sampling", [None, kvctl.Sampling(temperature=0.7)])
def test_the_text_is_plain_text(family, sampling):
    expected = [one.tokens for one in generate(None, sampling=sampling)]
    got = generate(FAMILIES[family](), sampling=sampling)
    assert [one.tokens for one in got] == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_where_the_cache_is_small_and_mixed_with_others(family):
    """Texts wait, drafts are dropped, and only a part of a drafter's nodes is verified."""
    expected = [one.tokens for one in generate(None)]
    for drafter in (
        FAMILIES[family](),
        MixedDrafter(ScriptedDrafter(expected, length=3), FAMILIES[family]()),
    ):
        got = generate(drafter, FakeRunner(order=1, pages=13, page_size=16))
        assert [one.tokens for one in got] == expected


def test_recycling_knows_every_token_it_has_seen():
    drafter = TokenRecyclingDrafter(candidates=2, nodes=8)
    runner = FakeRunner(tokens_after=counting)
    first = kvctl.generate(runner, [0], max_new_tokens=50, drafter=drafter)
    assert drafter.acceptance[0] > 0.5 > drafter.acceptance[1]
    request = Request(0, [9, 6], 1, 0, kvctl.Sampling(temperature=0.0), limit=8)
    drafter.propose([request], Budget(RoundCost()))
    [draft] = drafter.propose([request], Budget(RoundCost()))
    path, node = [], 0
    while (children := np.flatnonzero(draft.tree.parents == node)).size:
        node = int(children[0])
        path.append(int(draft.tree.tokens[node]))
    assert path[:3] == [9, 12, 15]
    assert draft.rates[0] == 1 and len(draft.rates) == len(draft.tree)
    assert first.tokens == [3 * i % VOCABULARY for i in range(1, 51)]


def test_jacobi_takes_fewer_rounds_where_guesses_come_true():
    """Every guess of a token that follows from its position alone is right at once."""
    runner = FakeRunner(tokens_after=lambda context: len(context) % VOCABULARY)
    one = kvctl.generate(runner, [0], max_new_tokens=41, drafter=JacobiDrafter(length=4))
    # Of two rounds one has guesses at random, and the next has those that it made: 1 + 5 tokens.
    assert one.statistics.rounds == 14
    assert one.tokens == [n % VOCABULARY for n in range(1, 42)]


def test_lookahead_finds_n_grams_that_the_text_has_not_had():
    """A token's successor is fixed, so the window finds chains before the text comes to them."""
    drafter = LookaheadDrafter(window=4, n=3, guesses=3)
    runner = FakeRunner(tokens_after=counting)
    one = kvctl.generate(runner, [0, 20, 11, 31], max_new_tokens=38, drafter=drafter)
    assert one.tokens[:3] == [34, 37, 0]
    assert one.statistics.mean_acceptance_length > 1.2
    assert len(drafter.pool) > 0


def test_pool_keeps_the_newest():
    pool = NgramPool(3, 2)
    pool.add_all([1, 2, 3, 1, 2, 4])
    assert pool.after(1) == [(2, 4), (2, 3)]
    pool.add([1, 2, 3])
    pool.add([1, 9, 9])
    assert pool.after(1) == [(9, 9), (2, 3)]
    assert pool.after(5) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TokenRecyclingDrafter(candidates=0), r"candidates must be in \[1, 16\], got 0"),
        (lambda: TokenRecyclingDrafter(nodes=-1), "nodes must not be negative, got -1"),
        (lambda: JacobiDrafter(length=-1), "length must not be negative, got -1"),
        (lambda: LookaheadDrafter(n=1), "n must be at least 2, got 1"),
        (lambda: LookaheadDrafter(window=0), "window must be at least 1, got 0"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()

"""Rules in the loop: which are refused, and that the others keep the joint distribution."""

from __future__ import annotations

import pytest

from fake_runner import FakeRunner
from kvctl import Sampling, generate
from kvctl.draft import Draft, LookupDrafter
from random_drafter import RandomDrafter
from table_world import (
    CHAIN,
    LIMIT,
    PATHS,
    TARGET,
    TREE,
    TRIALS,
    TableDrafter,
    TableRunner,
    joint,
    statistic,
)

LOSSLESS = [
    ("token_wise", "independent", CHAIN),
    ("block", "independent", CHAIN),
    ("recursive", "independent", TREE),
    ("traversal", "independent", TREE),
    ("recursive", "without_replacement", TREE),
    ("traversal", "without_replacement", TREE),
    ("traversal", "deterministic", TREE),
    ("auto", "independent", TREE),
    ("target_only", "without_replacement", TREE),
    ("best_of_k", "independent", PATHS),
    ("coupled", "coupled", CHAIN),
    ("target_only", "coupled", CHAIN),
]


@pytest.mark.parametrize(("rule", "how", "shape"), LOSSLESS)
def test_the_joint_distribution_of_four_tokens(rule, how, shape):
    counts, expected, drafted = joint(rule, TableDrafter(how, shape))
    assert drafted > TRIALS / 2
    assert statistic(counts, expected) < LIMIT


@pytest.mark.parametrize("rule", ["recursive", "traversal"])
def test_a_drafter_that_lies_about_how_it_drew_is_seen(rule):
    """The negative control: siblings sorted by value are not drawn in that order."""
    drafter = TableDrafter("without_replacement", TREE, lie=True)
    counts, expected, _ = joint(rule, drafter)
    assert statistic(counts, expected) > 5 * LIMIT


def test_the_same_lie_does_no_harm_to_the_rule_that_trusts_nobody():
    drafter = TableDrafter("without_replacement", TREE, lie=True)
    counts, expected, _ = joint("auto", drafter)
    assert statistic(counts, expected) < LIMIT


def first_child_or_none(tree, rng):
    """Accept the first child where it is what the target draws: target_only, written again."""
    node = 0
    while True:
        token = rng.categorical(tree.target[node], node)
        below = [c for c in range(1, len(tree.tree)) if tree.tree.parents[c] == node]
        following = [c for c in below if tree.tree.tokens[c] == token]
        if not following:
            return node, token
        node = following[0]


def test_a_rule_of_ones_own():
    runner = TableRunner(TARGET)
    drafter = TableDrafter("independent", TREE)
    options = {"max_new_tokens": 7, "sampling": Sampling(temperature=1.0), "drafter": drafter}
    texts = generate(runner, [[0]] * 300, rule=first_child_or_none, **options)
    assert all(len(text.tokens) == 7 for text in texts)
    assert sum(sum(text.statistics.accepted) for text in texts) > 100


@pytest.mark.parametrize(
    ("rule", "how", "shape", "message"),
    [
        ("block", "independent", TREE, "for chains.*use 'recursive'"),
        ("traversal", "coupled", CHAIN, "biased for drawn='coupled'.*use 'coupled'"),
        ("best_of_k", "without_replacement", TREE, "lossless only for drawn='independent'"),
        ("greedy", "independent", CHAIN, "lossless only at temperature 0"),
    ],
)
def test_a_rule_that_would_be_biased_is_refused_with_the_reason(rule, how, shape, message):
    runner = TableRunner(TARGET)
    with pytest.raises(ValueError, match=message):
        generate(
            runner,
            [[0], [1]],
            max_new_tokens=9,
            rule=rule,
            drafter=TableDrafter(how, shape),
            sampling=Sampling(temperature=1.0),
        )
    assert runner.cache.committed == {}


def test_rates_never_cut_what_a_rule_would_be_biased_by():
    class Rated(TableDrafter):
        def propose(self, requests, budget):
            drafts = super().propose(requests, budget)
            return [
                Draft(d.tree, d.drawn, probs=d.probs, rates=[0.0] * len(d.tree)) for d in drafts
            ]

    runner = TableRunner(TARGET)
    options = {"max_new_tokens": 20, "sampling": Sampling(temperature=1.0)}
    drafter = Rated("independent", TREE)
    assert generate(runner, [0], rule="traversal", drafter=drafter, **options).statistics.drafted
    # Where cutting is harmless, nodes that promise nothing are not verified.
    stats = generate(runner, [0], drafter=drafter, **options).statistics
    assert stats.speculative_rounds == 0


@pytest.mark.parametrize("rule", ["target_only", "traversal", "recursive"])
def test_deterministic_drafts_under_any_rule_in_a_batch(rule):
    runner = FakeRunner()
    drafter = RandomDrafter()
    sampling = Sampling(temperature=1.0)
    texts = generate(
        runner,
        [[i] for i in range(5)],
        max_new_tokens=20,
        rule=rule,
        drafter=drafter,
        sampling=sampling,
    )
    assert all(len(text.tokens) == 20 for text in texts)


def test_greedy_by_name_is_auto_at_temperature_zero():
    runner = FakeRunner()
    texts = [generate(runner, [3], max_new_tokens=20, rule=r) for r in ("auto", "greedy")]
    assert texts[0].tokens == texts[1].tokens
    drafted = generate(
        runner, [3], max_new_tokens=20, rule="greedy", drafter=LookupDrafter(length=3)
    )
    assert drafted.tokens == texts[0].tokens

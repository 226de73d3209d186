"""Rules in the loop: which are refused, and that the others keep the joint distribution."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2

from fake_runner import FakeCache, FakeRunner
from kvctl import Sampling, TokenTree, generate
from kvctl.draft import Draft, Drafter, LookupDrafter, sample
from random_drafter import RandomDrafter

TARGET = np.array([[0.45, 0.35, 0.2], [0.1, 0.6, 0.3], [0.5, 0.05, 0.45]])
DRAFT = np.array([[0.1, 0.5, 0.4], [0.4, 0.3, 0.3], [0.2, 0.7, 0.1]])
TRIALS = 4000


class TableRunner(FakeRunner):
    """A model whose next token depends on the last one alone."""

    def __init__(self, table):
        super().__init__(pages=10**6, chunk=10**6, sequences=10**6)
        self.cache = FakeCache(pages=10**6, chunk=10**6, sequences=10**6)
        self.vocab_size = len(table)
        self._table = np.log(table).astype(np.float32)

    def _rows(self, contexts):
        return self._table[[context[-1] for context in contexts]]


class TableDrafter(Drafter):
    """Draws siblings from a table.

    Parameters
    ----------
    how
        How they are drawn.
    shape
        Pairs (parent, siblings), in the order in which they are drawn.
    lie
        Sort siblings by their probability after drawing, and not say so.
    """

    def __init__(self, how, shape, *, lie=False):
        self.how, self.shape, self.lie = how, shape, lie
        self.nodes = sum(n for _, n in shape)
        self.logits = np.log(DRAFT).astype(np.float32)

    def propose(self, requests, budget):
        chosen = [r for r in requests if r.limit >= self.nodes]
        drafts = {r.id: Draft.nothing(r.root) for r in requests}
        if chosen:
            drafts |= self.draw(chosen)
        return [drafts[r.id] for r in requests]

    def draw(self, requests):
        tokens, parents = [[r.root] for r in requests], [-1]
        depths = [0]
        for parent, n in self.shape:
            last = [one[parent] for one in tokens]
            drawn = sample(
                self.logits[last],
                how=self.how,
                n=n,
                seed=requests[0].seed,
                request_ids=[r.request_id for r in requests],
                root_positions=[r.root_position for r in requests],
                first_nodes=len(parents),
                depths=depths[parent] + 1,
            )
            for row, one in enumerate(tokens):
                mine = [int(t) for t in drawn.tokens[row]]
                if self.lie:
                    mine.sort(key=lambda t, q=DRAFT[last[row]]: q[t])
                one += mine
            parents += [parent] * n
            depths += [depths[parent] + 1] * n
        needed = self.how not in ("deterministic", "coupled")
        return {
            r.id: Draft(TokenTree(one, parents), self.how, probs=DRAFT[one] if needed else None)
            for r, one in zip(requests, tokens, strict=True)
        }


def joint(rule, drafter, sampling=None, seed=11):
    """Return how often each outcome of tokens 2 to 4 came, and how often it should have."""
    texts = generate(
        TableRunner(TARGET),
        [[0]] * TRIALS,
        max_new_tokens=7,
        rule=rule,
        drafter=drafter,
        sampling=sampling or Sampling(temperature=1.0),
        seed=seed,
        max_batch=2000,
    )
    counts = np.zeros((3, 3, 3))
    for text in texts:
        counts[tuple(text.tokens[1:4])] += 1
    expected = np.einsum("a,ab,bc,cd->bcd", TARGET[0], TARGET, TARGET, TARGET) * TRIALS
    drafted = sum(sum(text.statistics.accepted) for text in texts)
    return counts.ravel(), expected.ravel(), drafted


def statistic(counts, expected):
    return float(((counts - expected) ** 2 / expected).sum())


LIMIT = chi2.isf(1e-7, 26)
CHAIN = [(0, 1), (1, 1), (2, 1)]
TREE = [(0, 2), (1, 2)]
PATHS = [(0, 2), (1, 1), (2, 1)]
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

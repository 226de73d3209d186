"""One tree from several drafters: what it is made of, and that no rule is biased by it."""

from __future__ import annotations

import numpy as np
import pytest

import kvctl
from fake_runner import FakeRunner
from kvctl.draft import (
    Budget,
    Draft,
    Drafter,
    LookupDrafter,
    MixedDrafter,
    ModelDrafter,
    Request,
    RoundCost,
    RoundResult,
)
from random_drafter import RandomDrafter
from table_world import (
    DRAFT,
    LIMIT,
    TARGET,
    TREE,
    TRIALS,
    TableDrafter,
    TableRunner,
    joint,
    statistic,
)


class Fixed(Drafter):
    """Drafts what it is given, and remembers what it is told."""

    def __init__(self, *draft, drawn="deterministic", rates=None, layers=(), **probs):
        self.draft = Draft(kvctl.TokenTree(*draft), drawn, rates=rates, **probs)
        self.hidden_layers = layers
        self.told = []

    def start(self, request):
        self.prompt_hidden = request.prompt_hidden

    def propose(self, requests, budget):
        return [self.draft for _ in requests]

    def observe(self, results):
        self.told += results


def request(limit=16):
    sampling = kvctl.Sampling(temperature=0.0)
    return Request(0, [3, 9], 1, 0, sampling, limit=limit)


def propose(mixed, limit=16):
    return mixed.propose([request(limit)], Budget(RoundCost()))[0]


def result(draft, accepted, emitted, hidden=None):
    return RoundResult(
        request=request(),
        draft=draft,
        nodes=range(len(draft.tree)),
        accepted=accepted,
        emitted=emitted,
        kept=[0, *accepted],
        hidden=hidden,
        rows=1,
        seconds=0.1,
        finished=False,
    )


def test_equal_nodes_are_one_and_each_drafter_learns_of_its_own():
    #  a: 9 - 1 - 2    b: 9 - 1 - 5,  9 - 4
    a = Fixed([9, 1, 2], [-1, 0, 1], rates=[1, 0.5, 0.4])
    b = Fixed([9, 1, 5, 4], [-1, 0, 1, 0], rates=[1, 0.6, 0.2, 0.1])
    mixed = a | b
    draft = propose(mixed)
    assert draft.tree.tokens.tolist() == [9, 1, 2, 5, 4]
    assert draft.tree.parents.tolist() == [-1, 0, 1, 1, 0]
    # Behind the first token each node is believed as its own drafter does there.
    assert draft.rates == pytest.approx([1, 0.6, 0.6 * 0.8, 0.2, 0.1])
    assert draft.deterministic
    mixed.observe([result(draft, [1, 3], [1, 5, 7])])
    assert a.told[0].accepted == [1] and a.told[0].draft is a.draft
    assert b.told[0].accepted == [1, 2] and list(b.told[0].nodes) == [0, 1, 2, 3]
    assert a.told[0].emitted == b.told[0].emitted == [1, 5, 7]


def test_random_nodes_come_first_and_keep_their_distributions():
    probs = np.arange(9.0).reshape(3, 3)
    sure = Fixed([9, 5, 6], [-1, 0, 1])
    drawn = Fixed([9, 4, 5], [-1, 0, 0], drawn="independent", probs=probs)
    draft = propose(sure | drawn)
    assert draft.tree.tokens.tolist() == [9, 4, 5, 6]  # the deterministic 5 is left out
    assert draft.tree.parents.tolist() == [-1, 0, 0, 2]
    assert list(draft.drawn)[1:] == ["independent", "independent", "deterministic"]
    assert np.array_equal(draft.probs[:3], probs)


def test_several_random_drafters_are_given_node_by_node():
    probs = np.arange(9.0).reshape(3, 3)
    a = Fixed([9, 4, 5], [-1, 0, 1], drawn="independent", probs=probs)
    b = Fixed([9, 4], [-1, 0], drawn="independent", probs=10 + probs[:2])
    draft = propose(a | b)
    assert draft.tree.tokens.tolist() == [9, 4, 5, 4]  # equal draws are two draws
    assert draft.probs is None
    assert np.array_equal(draft.probs_per_node[1:], [probs[0], probs[1], 10 + probs[0]])
    w = Fixed([9, 4], [-1, 0], drawn="without_replacement", probs=probs[:2])
    with pytest.raises(ValueError, match="without replacement must give probs_per_node"):
        propose(a | w)


def test_the_limit_takes_nodes_of_later_drafters_with_what_is_below_them():
    a = Fixed([9, 1, 2], [-1, 0, 1])
    b = Fixed([9, 4, 5, 1, 2], [-1, 0, 1, 0, 3])
    mixed = a | b
    draft = propose(mixed, limit=3)
    assert draft.tree.tokens.tolist() == [9, 1, 2, 4]
    mixed.observe([result(draft, [3], [4, 8])])
    assert list(b.told[0].nodes) == [0, 1, 3, 4]
    assert b.told[0].accepted == [1]


def test_hidden_states_are_those_of_the_layers_asked_for():
    a, b, c = (Fixed([9], [-1], layers=layers) for layers in ((7,), (2, 7), ()))
    mixed = MixedDrafter(a, b, c)
    assert mixed.hidden_layers == (2, 7)
    begun = request()
    begun.prompt_hidden = np.array([[[2, 2], [7, 7]]])
    mixed.start(begun)
    assert a.prompt_hidden.tolist() == [[[7, 7]]]
    assert b.prompt_hidden.tolist() == [[[2, 2], [7, 7]]]
    assert c.prompt_hidden is None
    mixed.observe([result(propose(mixed), [], [1], begun.prompt_hidden)])
    assert a.told[0].hidden.tolist() == [[[7, 7]]] and c.told[0].hidden is None


def test_of_equal_draws_the_accepted_one_is_told():
    drawn = Fixed([9, 4, 4, 6], [-1, 0, 0, 2], drawn="independent", probs=np.ones((4, 3)))
    mixed = Fixed([9, 4, 5], [-1, 0, 1]) | drawn
    draft = propose(mixed)
    assert draft.tree.tokens.tolist() == [9, 4, 4, 6, 5]
    mixed.observe([result(draft, [2, 3], [4, 6, 8])])
    assert drawn.told[0].accepted == [2, 3]
    assert mixed.drafters[0].told[0].accepted == [1]


def test_a_draft_beside_empty_ones_is_taken_as_it_is():
    a = Fixed([9], [-1])
    b = Fixed([9, 1, 2, 1], [-1, 0, 1, 0], rates=[1, 0.6, 0.4, 0.3], layers=(7,))
    mixed = a | b
    draft = propose(mixed)
    assert draft is b.draft
    told = result(draft, [1], [1, 7], hidden=np.zeros((2, 1, 1)))
    mixed.observe([told])
    assert b.told == [told]
    assert a.told[0].draft is a.draft and a.told[0].hidden is None
    assert list(a.told[0].nodes) == [0] and a.told[0].accepted == []
    nothing = Fixed([9], [-1]) | Fixed([9], [-1])
    assert len(propose(nothing).tree) == 1


def test_what_was_drawn_beside_empty_drafts_is_declared():
    drawn = Fixed([9, 4], [-1, 0], drawn="independent", probs=np.ones((2, 3)))
    draft = propose(Fixed([9], [-1]) | drawn)
    assert list(draft.drawn)[1:] == ["independent"] and len(draft.probs) == 2


def test_bars_join_and_none_is_refused():
    a, b, c = (Fixed([9], [-1]) for _ in range(3))
    assert (a | b | c).drafters == (a, b, c)
    assert (a | (b | c)).drafters == (a, b, c)
    with pytest.raises(ValueError, match="at least one drafter"):
        MixedDrafter()


@pytest.mark.parametrize("seed", range(4))
def test_the_contract_with_each_drafter_holds_in_the_loop(seed):
    """`RandomDrafter` checks what it is told."""
    prompts = [[i, 1, 2] for i in range(4)]
    expected = [one.tokens for one in kvctl.generate(FakeRunner(), prompts, max_new_tokens=25)]
    parts = [
        Loose(seed, answers=dict(enumerate(expected)), hidden_layers=layers)
        for layers in ((), (1,), (1, 4))
    ]
    got = kvctl.generate(
        FakeRunner(), prompts, max_new_tokens=25, drafter=MixedDrafter(*parts), max_batch=3
    )
    assert [one.tokens for one in got] == expected
    assert not any(part.texts for part in parts)


class Loose(RandomDrafter):
    """A part of a mixed drafter: what it drafted may be accepted less far than the whole."""

    def observe(self, results):
        for one in results:
            tree, parent = one.draft.tree, 0
            assert set(one.accepted) <= set(one.nodes)
            for node, token in zip(one.accepted, one.emitted, strict=False):
                assert tree.parents[node] == parent and tree.tokens[node] == token
                parent = node
            assert (one.hidden is None) == (not self.hidden_layers)
            if one.hidden is not None:
                assert one.hidden.shape[:2] == (len(one.kept), len(self.hidden_layers))
            self.proposed.pop(one.request.id)
            self.texts[one.request.id] += one.emitted


class Likely(Drafter):
    """Drafts the most likely chain of the drafter's table."""

    def __init__(self, length=2):
        self.length = length

    def propose(self, requests, budget):
        drafts = []
        for one in requests:
            chain = [one.root]
            while len(chain) <= min(self.length, one.limit):
                chain.append(int(DRAFT[chain[-1]].argmax()))
            drafts.append(Draft(kvctl.TokenTree.chain(chain)))
        return drafts


@pytest.mark.parametrize("rule", ["recursive", "traversal"])
@pytest.mark.parametrize(
    "mixed",
    [
        lambda: Likely() | TableDrafter("without_replacement", TREE),
        lambda: TableDrafter("independent", TREE) | Likely(3),
        lambda: TableDrafter("independent", [(0, 1)]) | TableDrafter("independent", [(0, 2)]),
        lambda: (
            LookupDrafter(length=2)
            | ModelDrafter(TableRunner(DRAFT), how="independent", branching=(2, 2), length=2)
        ),
    ],
)
def test_the_joint_distribution_of_four_tokens(rule, mixed):
    counts, expected, drafted = joint(rule, mixed())
    assert drafted > TRIALS / 2
    assert statistic(counts, expected) < LIMIT


class Liar(TableDrafter):
    """Says that it drew at random what it chose by value."""

    def propose(self, requests, budget):
        return [
            Draft(one.tree, "independent", probs=DRAFT[one.tree.tokens])
            for one in Likely().propose(requests, budget)
        ]


def test_a_part_that_lies_about_how_it_drew_is_seen():
    """The negative control."""
    counts, expected, _ = joint("traversal", Liar("independent", TREE) | Likely())
    assert statistic(counts, expected) > 5 * LIMIT


def test_tables_are_far_enough_apart_to_see_a_bias():
    assert np.abs(TARGET - DRAFT).sum(axis=1).min() > 0.5

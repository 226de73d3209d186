"""A head drafts over hidden states: texts stay what they are, and its entries are the target's."""

from __future__ import annotations

import numpy as np
import pytest

from drafters import DRAWN, SHORT_CACHES, Lying, Verified
from fake_heads import SumHead, TableHead, sum_token
from fake_runner import FakeRunner
from kvctl import Sampling, generate
from kvctl.draft import DraftVocabulary, HeadDrafter, LookupDrafter
from simulated_time import let_drafting_pay
from table_world import DRAFT, LIMIT, TARGET, TableRunner, joint, statistic

PROMPTS = [[1, 2, 3], [4] * 90, [5, 6], [7, 8, 9, 10, 11]]
SHAPES = {
    "chain": {"length": 4},
    "adaptive": {},
    "tree": {"branching": (3, 2, 2), "max_length": 4},
    "eagle2": {"branching": 4, "beam": 3, "max_length": 4, "nodes": 9},
    "eagle2 of one size": {"branching": 4, "beam": 3, "length": 4, "nodes": 9},
    "drawn": {"branching": (3, 1), "length": 3, "how": "without_replacement"},
    "independent": {"branching": (2, 2), "length": 2, "how": "independent"},
    "coupled": {"length": 4, "how": "coupled"},
}
TRIALS = 1500


@pytest.fixture(autouse=True)
def drafting_pays(monkeypatch):
    """How often a head that adapts drafts is otherwise up to this machine's timings."""
    let_drafting_pay(monkeypatch)


def target(**options):
    """Return a model whose next token depends on the sum of all before it."""
    return FakeRunner(tokens_after=lambda context: sum_token(sum(context)), **options)


class InStep(Verified, HeadDrafter):
    """Checks after each round that all entries are those of the text, made of true features."""

    checks = 0

    def propose(self, requests, budget):
        drafts = super().propose(requests, budget)
        head = self._heads._head
        for request in requests:
            if request in self._heads and not self._heads._texts[request.id].tokens:
                sums = np.cumsum(request.tokens[:-1]).tolist()
                expected = list(zip(sums, request.tokens[1:], strict=True))
                assert head.entries[self._heads.id_of(request)] == expected
                self.checks += 1
        return drafts


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sampling", [None, Sampling(temperature=2.0)], ids=["greedy", "sampled"])
def test_texts_are_plain_and_entries_are_the_targets(shape, sampling):
    options = {"max_new_tokens": [40, 30, 20, 25], "sampling": sampling, "seed": [1, 2, 3, 4]}
    expected = [text.tokens for text in generate(target(), PROMPTS, **options)]
    head = SumHead()
    drafter = InStep(head, **SHAPES[shape])
    got = generate(target(), PROMPTS, drafter=drafter, **options)
    assert [text.tokens for text in got] == expected
    assert drafter.checks > 5
    assert sum(sum(text.statistics.accepted) for text in got) > 0
    assert not head.cache.committed


def test_a_head_that_is_right_is_accepted_whole():
    drafter = HeadDrafter(SumHead(wrong=10**9), length=4)
    text = generate(target(), [1, 2, 3], drafter=drafter, max_new_tokens=26)
    assert text.statistics.mean_acceptance_length == 5.0


def test_no_more_nodes_than_asked_for():
    seen = []

    class Watched(HeadDrafter):
        def observe(self, results):
            seen.extend(len(result.nodes) for result in results)
            super().observe(results)

    drafter = Watched(SumHead(), branching=4, beam=3, length=4, nodes=5)
    generate(target(), [1, 2, 3], drafter=drafter, max_new_tokens=30)
    assert max(seen) == 6


RULES = [
    *DRAWN,
    ("auto", {"branching": 2, "beam": 2, "nodes": 3, "length": 3}),
    ("traversal", {"branching": 2, "beam": 2, "nodes": 3, "length": 3}),
]
#: A part of the vocabulary, in another order than the target's.
PART = DraftVocabulary([2, 0], 3)


@pytest.mark.parametrize(
    ("rule", "options", "vocabulary"),
    [*[(*one, None) for one in RULES], *[(*one, PART) for one in RULES[::3]]],
)
def test_the_joint_distribution_of_four_tokens(rule, options, vocabulary):
    options = {"length": 2, **options}
    drafter = HeadDrafter(TableHead(DRAFT, vocabulary), **options)
    counts, expected, drafted = joint(rule, drafter, trials=TRIALS)
    assert drafted > TRIALS / 3
    assert statistic(counts, expected) < LIMIT


def test_a_head_that_lies_about_what_it_drew_from_is_seen():
    class Liar(Lying, HeadDrafter):
        pass

    drafter = Liar(TableHead(DRAFT), how="independent", length=2)
    counts, expected, _ = joint("token_wise", drafter, trials=TRIALS)
    assert statistic(counts, expected) > 5 * LIMIT


@pytest.mark.parametrize("short", SHORT_CACHES)
def test_a_head_without_room_drafts_less(short):
    expected = [text.tokens for text in generate(target(), PROMPTS, max_new_tokens=24)]
    drafter = InStep(SumHead(**SHORT_CACHES[short]), branching=(2, 1), length=3)
    got = generate(target(), PROMPTS, max_new_tokens=24, drafter=drafter)
    assert [text.tokens for text in got] == expected


def test_drafting_ends_with_the_heads_context():
    head = SumHead()
    head.context_window_size = 12
    drafter = HeadDrafter(head, length=3)
    text = generate(target(), [1, 2, 3], max_new_tokens=20, drafter=drafter)
    assert text.tokens == generate(target(), [1, 2, 3], max_new_tokens=20).tokens
    assert 0 < text.statistics.speculative_rounds < text.statistics.rounds


def test_a_target_short_of_pages_replays_texts():
    prompts = [[5, 6, 7 + i] for i in range(6)]
    expected = [text.tokens for text in generate(target(), prompts, max_new_tokens=100)]
    drafter = InStep(SumHead(), length=3)
    got = generate(target(pages=12), prompts, max_new_tokens=100, drafter=drafter)
    assert [text.tokens for text in got] == expected
    assert sum(text.statistics.replayed_tokens for text in got) > 0


def test_beside_another_drafter():
    expected = [text.tokens for text in generate(target(), PROMPTS, max_new_tokens=30)]
    head = SumHead()
    drafter = InStep(head, length=3) | LookupDrafter(length=4)
    got = generate(target(), PROMPTS, max_new_tokens=30, drafter=drafter)
    assert [text.tokens for text in got] == expected
    assert drafter.drafters[0].checks > 0 and not head.cache.committed


def test_a_target_that_breaks_leaves_the_head_usable():
    head = SumHead()
    drafter = HeadDrafter(head, length=3)

    def stop(tokens):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(target(), [1, 2], drafter=drafter, on_tokens=stop)
    assert not head.cache.committed
    text = generate(target(), [1, 2], drafter=drafter, max_new_tokens=9)
    assert text.tokens == generate(target(), [1, 2], max_new_tokens=9).tokens


def test_a_target_without_hidden_states_is_refused():
    runner = TableRunner(TARGET)
    runner.abilities = frozenset()
    with pytest.raises(ValueError, match="HeadDrafter wants hidden states of layers \\(0,\\)"):
        generate(runner, [0], drafter=HeadDrafter(TableHead(DRAFT)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": 0}, "nodes must be at least 1, got 0"),
        ({"nodes": 4, "how": "independent"}, "which biases random draws"),
        ({"length": -1}, "length must be at least 0, got -1"),
        ({"beam": 2, "how": "independent"}, "a beam keeps nodes by their value"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        HeadDrafter(SumHead(), **options)


@pytest.mark.parametrize(
    ("ids", "message"),
    [([0, 5], "has token 5; the target's are 0 to 4"), ([1, 3, 1], "has token 1 twice")],
)
def test_a_draft_vocabulary_that_is_none_is_refused(ids, message):
    with pytest.raises(ValueError, match=message):
        DraftVocabulary(ids, 5)

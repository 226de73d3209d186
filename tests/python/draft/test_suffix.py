"""Drafting from a store that all texts share."""

from __future__ import annotations

import numpy as np
import pytest

import kvctl
from fake_runner import VOCABULARY, FakeRunner
from kvctl.draft import Budget, Request, RoundCost, RoundResult, SuffixDrafter, SuffixStore

PROMPTS = [[i, 1, 2] for i in range(5)]
TOKENS = 60


def request(tokens, limit=16, prompt=0):
    return Request(0, tokens, prompt, 0, kvctl.Sampling(temperature=0.0), limit=limit)


def propose(drafter, tokens, limit=16, prompt=0):
    one = request(tokens, limit, prompt)
    drafter.start(one)
    [draft] = drafter.propose([one], Budget(RoundCost()))
    return one, draft


def store_of(*texts):
    store = SuffixStore(10_000)
    store.extend(texts)
    return store


def test_rates_are_shares_times_what_was_learnt():
    store = store_of([1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 5], [9, 2, 6])
    drafter = SuffixDrafter(store, learn=False)
    _, draft = propose(drafter, [1, 2])
    assert draft.tree.tokens.tolist() == [2, 3, 4, 5]
    right, then = drafter.acceptance.rate(2), drafter.acceptance.rate(3)
    expected = [1, right, right * then * 2 / 3, right * then / 3]
    assert draft.rates == pytest.approx(expected)
    assert draft.deterministic


def test_the_text_itself_is_drafted_from_where_it_promises_more():
    drafter = SuffixDrafter(store_of([3, 4, 50, 51]), learn=False)
    _, draft = propose(drafter, [1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4])
    assert draft.tree.tokens[1] == 5  # four tokens agree there, and two in the store
    _, draft = propose(drafter, [3, 4])
    assert draft.tree.tokens.tolist() == [4, 50, 51]


def test_acceptance_is_learnt_whether_or_not_anything_was_verified():
    drafter = SuffixDrafter(store_of([1, 2, 3, 4]), learn=False)
    for emitted, better in (([3, 4, 9], True), ([7], False)):
        one, draft = propose(drafter, [1, 2], limit=0)
        assert len(draft.tree) == 1
        before = drafter.acceptance.rate(2)
        one.tokens += emitted
        drafter.observe([RoundResult(one, draft, [0], [], emitted, [0], None, 1, 0.1, False)])
        assert (drafter.acceptance.rate(2) > before) == better


def test_matches_that_reach_back_into_the_prompt_are_rated_apart():
    """All prompts end with 1, 2; answers that begin with 3 differ from each other."""
    drafter = SuffixDrafter(store_of([8, 1, 2, 3, 4, 6, 3, 5]), learn=False)
    before = [propose(drafter, [7, 1, 2, 3], prompt=n)[1].rates[1] for n in (3, 0)]
    assert before[0] == before[1]
    for _ in range(20):
        one, draft = propose(drafter, [7, 1, 2, 3], prompt=3)
        one.tokens.append(30)
        drafter.observe([RoundResult(one, draft, [0], [], [30], [0], None, 1, 0.1, False)])
    begins, goes_on = [propose(drafter, [7, 1, 2, 3], prompt=n)[1].rates[1] for n in (3, 0)]
    assert begins < 0.5 * before[0] and goes_on == before[1]


def test_later_texts_are_drafted_from_earlier_ones():
    drafter = SuffixDrafter()
    plain = kvctl.generate(FakeRunner(), PROMPTS, max_new_tokens=TOKENS)
    first = kvctl.generate(FakeRunner(), PROMPTS, max_new_tokens=TOKENS, drafter=drafter)
    assert drafter.store.num_texts == len(PROMPTS)
    assert drafter.store.num_tokens == sum(map(len, PROMPTS)) + TOKENS * len(PROMPTS)
    found = drafter.store.continuations(PROMPTS[3], max_nodes=4, max_depth=4)
    assert found.tokens[1:].tolist() == plain[3].tokens[:4]
    again = kvctl.generate(FakeRunner(), PROMPTS, max_new_tokens=TOKENS, drafter=drafter)
    assert [one.tokens for one in first] == [one.tokens for one in plain]
    assert [one.tokens for one in again] == [one.tokens for one in plain]


def test_a_text_that_waits_and_one_that_is_given_up_are_not_added():
    drafter = SuffixDrafter()
    runner = FakeRunner(pages=11, page_size=16)
    texts = kvctl.generate(runner, PROMPTS, max_new_tokens=TOKENS, drafter=drafter)
    assert sum(one.statistics.replayed_tokens for one in texts) > 0
    assert drafter.store.num_texts == len(PROMPTS)

    def stop(tokens):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kvctl.generate(runner, PROMPTS[0], drafter=drafter, on_tokens=stop)
    assert drafter.store.num_texts == len(PROMPTS)


def test_learn_can_be_off_and_stores_can_be_shared():
    store = store_of(np.arange(VOCABULARY))
    drafters = [SuffixDrafter(store, learn=learn) for learn in (False, True)]
    for drafter in drafters:
        kvctl.generate(FakeRunner(), PROMPTS[0], max_new_tokens=9, drafter=drafter)
    assert store.num_texts == 2


def test_a_draft_has_at_most_max_length_nodes():
    store = store_of(*([1, 2, i, i + 1, i + 2] for i in range(3, 8)))
    for most in (0, 1, 5):
        _, draft = propose(SuffixDrafter(store, max_length=most), [1, 2])
        assert len(draft.tree) == 1 + most
    with pytest.raises(ValueError, match="max_length must not be negative, got -1"):
        SuffixDrafter(max_length=-1)

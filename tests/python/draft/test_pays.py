"""Drafting with a model goes as far as its own time pays, by a clock that only forwards move."""

from __future__ import annotations

from functools import cache

import pytest

from drafters import Around
from fake_heads import SumMedusa
from kvctl import Sampling, TokenTree, generate
from kvctl.draft import (
    Budget,
    Draft,
    HeadDrafter,
    LookupDrafter,
    MedusaDrafter,
    Request,
    RoundCost,
    RoundResult,
)
from kvctl.draft.model.pays import DraftingPays
from simulated_time import WORLDS, Clock, TimedHead, TimedRunner

TOKENS = 300
PROMPT = [1, 2, 3]


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@cache
def plain(world, prompt):
    text = list(prompt)
    for _ in range(TOKENS):
        text.append(WORLDS[world](text))
    return text[len(prompt) :]


def seconds(clock, world, drafter, prompts=(PROMPT,)):
    """Return what it takes to generate in a world, the head's own time too."""
    clock.now, runner = 0.0, TimedRunner(clock, WORLDS[world], pages=1000)
    texts = generate(runner, list(map(list, prompts)), max_new_tokens=TOKENS, drafter=drafter)
    for prompt, text in zip(prompts, texts, strict=True):
        assert text.tokens == plain(world, tuple(prompt))
    return clock.now


@pytest.mark.parametrize("world", WORLDS)
def test_mixed_with_a_free_drafter_a_head_is_asked_where_it_pays(clock, world):
    step = 0.3
    alone = [
        seconds(clock, world, LookupDrafter()),
        seconds(clock, world, HeadDrafter(TimedHead(clock, step=step))),
    ]
    mixed = HeadDrafter(TimedHead(clock, step=step)) | LookupDrafter()
    # The head's first draft, from which it is known what it costs, is not lost in a short text.
    assert seconds(clock, world, mixed) <= 1.03 * min(TOKENS, *alone) + 2 * step


@pytest.mark.parametrize("shape", [{}, {"branching": 4, "beam": 4, "nodes": 16}])
def test_a_head_that_is_right_drafts_in_every_round(clock, shape):
    head = TimedHead(clock, step=0.1, wrong=10)
    assert seconds(clock, "fresh", HeadDrafter(head, **shape)) < 0.5 * TOKENS


@pytest.mark.parametrize("step", [0.1, 1.0, 5.0])
def test_a_head_that_is_wrong_costs_little(clock, step):
    drafter = HeadDrafter(TimedHead(clock, step=step))
    assert seconds(clock, "neither", drafter) < 1.02 * TOKENS + 4 * step + 3


def test_catching_up_is_a_part_of_what_a_draft_costs(clock):
    """Levels are free, and right; the forward over accepted tokens takes three plain rounds."""

    class Late(TimedHead):
        def forward(self, seq_ids, tokens, features, *, mask=None):
            self.step = 0.0 if mask is not None else 3.0
            return super().forward(seq_ids, tokens, features, mask=mask)

    dear = seconds(clock, "fresh", HeadDrafter(Late(clock, step=0.0, chunk=1000), max_length=1))
    assert dear < 1.02 * TOKENS + 14  # a draft brings less than one token
    head = Late(clock, step=0.0, chunk=1000)
    assert seconds(clock, "fresh", HeadDrafter(head, max_length=6)) < 1.02 * TOKENS + 14


def test_medusas_heads_rest_where_they_do_not_pay(clock):
    class Timed(SumMedusa):
        def logits(self, hidden):
            clock.now += 1.0
            return super().logits(hidden)

    assert seconds(clock, "neither", MedusaDrafter(Timed())) < 1.02 * TOKENS + 5
    always = MedusaDrafter(Timed(), adapt=False)
    assert seconds(clock, "neither", always) > 1.9 * TOKENS


class InStep(Around):
    """Checks the head's entries whenever it has drafted, and counts the rounds that it left out."""

    def __init__(self, drafter, head):
        super().__init__(drafter)
        self.costs_time = True
        self.head, self.left_out, self.longest = head, 0, 0

    def propose(self, requests, budget):
        before = len(self.head.forwards)
        drafts = super().propose(requests, budget)
        new = self.head.forwards[before:]
        self.left_out += not new
        if new:
            # One forward catches up, whatever was left out; the others are levels.
            assert [is_level for _, is_level in new] == [False] + [True] * (len(new) - 1)
            self.longest = max(self.longest, new[0][0]) if self.left_out else 0
            for request in requests:
                entries = self.head.entries[self.drafter._heads.id_of(request)]
                sums = [sum(request.tokens[: i + 1]) for i in range(len(request.tokens) - 1)]
                assert entries == list(zip(sums, request.tokens[1:], strict=True))
        return drafts


@pytest.mark.parametrize("prompts", [(PROMPT,), (PROMPT, [7], [4] * 9)])
def test_a_head_catches_up_with_rounds_that_others_drafted(clock, prompts):
    head = TimedHead(clock, step=0.1, chunk=1000)
    drafter = InStep(HeadDrafter(head), head)
    seconds(clock, "both", drafter | LookupDrafter(), prompts)
    assert drafter.left_out > 10 and drafter.longest > 20
    assert not head.cache.committed


def test_what_others_promise_takes_the_round():
    cost = RoundCost()
    cost.calibrate(lambda rows: 1.0 + 0.05 * (rows - 1))
    budget, pays = Budget(cost), DraftingPays()
    request = Request(0, [1], 0, 0, Sampling(temperature=0.0), limit=4)
    assert pays.worthwhile(budget, [request])
    assert not pays.worthwhile(budget.beside(3.0), [request])
    assert budget.promised == 1.0 and budget.beside(0.4).promised == 1.0
    assert budget.beside(3.0).purse(0) == budget.purse(0)


def test_unlucky_rounds_do_not_end_drafts_that_learnt_rates_believe_in():
    cost = RoundCost()
    cost.calibrate(lambda rows: 1.0 + 0.05 * (rows - 1))
    budget, pays = Budget(cost, credit=100.0), DraftingPays()
    request = Request(0, [1], 0, 0, Sampling(temperature=0.0), limit=4)
    tree = TokenTree([1, 2, 3], [-1, 0, 1])

    def unlucky(rates):
        assert pays.worthwhile(budget, [request])
        draft = Draft(tree, rates=rates)
        result = RoundResult(request, draft, [0, 1, 2], [], [7], [0], None, 3, 1.1, False)
        pays.observe_round([result])

    for _ in range(40):
        unlucky([1.0, 0.6, 0.3])
    assert pays.gain == pytest.approx(1.9 / 1.1, rel=0.1)
    with pytest.raises(AssertionError):  # rates that fell with the trials end it
        for _ in range(100):
            unlucky([1.0, 0.02, 0.01])

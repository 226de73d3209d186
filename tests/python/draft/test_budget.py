from itertools import product

import numpy as np
import pytest

from kvctl import Sampling
from kvctl.draft import Budget, LookupDrafter, Request, RoundCost
from kvctl.draft.savings import Savings, savings_of


class OneText:
    """The budget of a round with a single text."""

    def __init__(self, time_of, **options):
        self.cost = RoundCost(max_rows=17)
        self.cost.calibrate(time_of)
        self.budget = Budget(self.cost, **options)
        self.request = Request(0, [1], 0, 0, Sampling(temperature=0.0))

    @property
    def purse(self):
        return self.budget.purse(0)

    def choose(self, rates, limit):
        self.request.limit = limit
        return self.budget.choose([self.request], [rates])[0]

    def observe(self, rows, emitted, seconds):
        self.budget.observe([0], [rows - 1], [emitted], seconds)


def started(time_of, **options):
    return OneText(time_of, **options)


def cheap(rows):
    return 0.02 * (1 + 0.05 * (rows - 1))


def test_drafts_as_far_as_it_pays():
    adaptive = started(cheap, credit=10)
    assert adaptive.choose([1.0] * 16, 16) == 16
    assert adaptive.choose([0.5**n for n in range(1, 17)], 16) == 3  # 1.75 / 1.1 < 1.875 / 1.15
    assert adaptive.choose([0.05**n for n in range(1, 17)], 16) == 0
    assert adaptive.choose([], 16) == 0


def test_maximises_emitted_over_cost():
    adaptive = started(cheap, credit=10, margin=0.0)
    rates = [0.8, 0.3, 0.6, 0.1, 0.25]  # in no order
    ordered = sorted(rates, reverse=True)
    value = [(1 + sum(ordered[:n])) / adaptive.cost(1 + n) for n in range(6)]
    assert adaptive.choose(rates, 16) == value.index(max(value))


def test_limits_hold():
    adaptive = started(cheap, credit=10)
    sure = [1.0] * 20
    assert adaptive.choose(sure, 8) == 8
    assert adaptive.choose(sure, 3) == 3
    assert adaptive.choose(sure, 0) == 0
    assert adaptive.choose(sure, -1) == 0


def test_where_rows_cost_as_much_as_steps_nothing_is_drafted():
    adaptive = started(lambda rows: 0.02 * rows, credit=100)
    assert adaptive.choose([0.99] * 16, 16) == 0


def test_bets_only_what_it_can_afford():
    def steep(rows):
        return 0.02 * (1 + 0.2 * (rows - 1))

    adaptive = started(steep, credit=0.5, allowance=0.0)
    sure = [0.99**n for n in range(1, 17)]
    assert adaptive.choose(sure, 16) == 2  # the third row would cost 0.6
    adaptive.observe(3, 1, steep(3))  # nothing was right: 0.4 lost
    assert adaptive.purse == pytest.approx(0.1)
    assert adaptive.choose(sure, 16) == 0
    adaptive.observe(1, 1, steep(1))
    assert adaptive.purse == pytest.approx(0.1)  # a plain step neither gains nor loses
    adaptive.observe(3, 3, steep(3))
    assert adaptive.purse == pytest.approx(0.1 + 3 - 1.4)
    assert adaptive.choose(sure, 16) == 8


def test_what_is_lost_to_a_liar_is_bounded():
    adaptive = started(cheap)
    rounds, spent = 300, 0.0
    for _ in range(rounds):
        rows = 1 + adaptive.choose([0.9**n for n in range(1, 17)], 16)  # and all are wrong
        spent += cheap(rows)
        adaptive.observe(rows, 1, cheap(rows))
    assert spent / cheap(1) <= rounds + 0.3 + 0.01 * rounds + 1e-6
    assert spent / cheap(1) > rounds  # or the bound was never tried


def requests(*limits):
    greedy = Sampling(temperature=0.0)
    return [Request(id, [1], 0, id, greedy, limit=limit) for id, limit in enumerate(limits)]


def test_the_best_nodes_of_all_texts():
    """Against brute force over how many nodes each text has."""
    rng = np.random.default_rng(3)
    for _ in range(200):
        size = int(rng.integers(1, 4))
        slope = float(rng.choice([0.02, 0.1, 0.3]))
        cost = RoundCost(max_rows=33)
        cost.calibrate(lambda rows, slope=slope: 0.02 * (1 + slope * (rows - 1)))
        rates = [sorted(rng.random(rng.integers(0, 5)))[::-1] for _ in range(size)]
        budget = Budget(cost, credit=100, margin=0.0)
        counts = budget.choose(requests(*[9] * size), rates)

        def value(counts, rates=rates, cost=cost, size=size):
            emitted = size + sum(sum(one[:n]) for one, n in zip(rates, counts, strict=True))
            return emitted / cost(size + sum(counts))

        every = product(*(range(len(one) + 1) for one in rates))
        assert value(counts) == pytest.approx(max(map(value, every)))


def test_each_text_has_a_purse_of_its_own():
    cost = RoundCost(max_rows=33)
    cost.calibrate(lambda rows: 0.02 * (1 + 0.2 * (rows - 1)))
    budget = Budget(cost, credit=0.5, allowance=0.0)
    two = requests(16, 16)
    sure = [[0.99] * 16, [0.99] * 16]
    counts = budget.choose(two, sure)
    assert min(counts) > 0
    budget.observe([0, 1], counts, [1, 1 + counts[1]], 0.02 * cost(2 + sum(counts)))
    assert budget.purse(0) < 0.2 < 0.5 < budget.purse(1)
    counts = budget.choose(two, sure)
    assert counts[0] <= 1 < counts[1]
    # What one text drafts takes nothing from the purse of another.
    before = budget.purse(0)
    budget.observe([0, 1], [0, 4], [1, 1], 0.02 * cost(6))
    assert budget.purse(0) == before
    budget.finish(0)
    assert budget.purse(0) == 0.5


def test_what_texts_gained_later_ones_may_lose():
    cost = RoundCost(max_rows=33)
    cost.calibrate(lambda rows: 1.0 + 0.2 * (rows - 1))
    savings = Savings(2.0)

    def started(texts=1):
        budget = Budget(cost, credit=0.3, allowance=0.0, savings=savings)
        budget.affords(requests(*[4] * texts))
        return budget

    first = started()
    first.observe([0], [2], [3], 1.4)
    assert first.purse(0) == pytest.approx(0.3 + 2 - 0.4)
    first.finish(0)
    two = started(2)  # they share it
    assert two.purse(0) == two.purse(1) == pytest.approx(0.3 + 0.8)
    two.observe([0, 1], [0, 5], [1, 1], cost(7))
    two.finish(1)  # its loss is saved by nobody
    two.finish(0)
    two.finish(5)  # a text that never began
    assert started().purse(0) == pytest.approx(0.3 + 0.8)  # which was interrupted: it is gone
    rich = started()
    assert rich.purse(0) == pytest.approx(0.3)
    rich.observe([0], [9], [10], cost(10))
    rich.finish(0)
    assert started().purse(0) == pytest.approx(0.3 + 2.0)


def test_texts_together_lose_no_more_than_their_own_credits():
    rng = np.random.default_rng(3)
    cost = RoundCost(max_rows=33)
    cost.calibrate(lambda rows: 1.0 + 0.1 * (rows - 1))
    for _ in range(20):
        savings, balance, right = Savings(), 0.0, rng.uniform(0.0, 0.6)
        for text in range(30):
            budget = Budget(cost, savings=savings)
            request = Request(0, [1], 0, 0, Sampling(temperature=0.0), limit=8)
            for _ in range(20):
                count = budget.choose([request], [[0.9, 0.5, 0.4]])[0]
                kept = count if rng.random() < right else 0
                budget.observe([0], [count], [1 + kept], cost(1 + count))
                balance += kept + 1 - cost(1 + count)
                assert balance >= -(text + 1) * (0.3 + 20 * 0.01) - 1e-6
            budget.finish(0)


def test_the_savings_of_a_drafter_are_its_own():
    one, other = LookupDrafter(), LookupDrafter()
    savings_of(one).give_back(1.0)
    assert savings_of(one).take(1) == 1.0
    assert savings_of(other).take(1) == 0.0
    assert savings_of(None) is not savings_of(None)


def test_what_nobody_could_pay_need_not_be_drafted():
    cost = RoundCost(max_rows=33)
    cost.recall([(8, 1.2), (9, 1.35), (16, 1.5)])
    assert not Budget(cost, credit=0.02, allowance=0.0).affords(requests(4))
    assert not Budget(cost).affords(requests(0))
    assert not Budget(cost).affords([])
    # The step behind 8 rows is too dear for one node, and not for two of each text.
    assert Budget(cost).affords(requests(*[16] * 8))
    assert not Budget(cost).affords(requests(1, *[0] * 7))
    # A single text must pay the step alone, however many rows share it.
    step = RoundCost(max_rows=33)
    step.recall([(2, 1.2), (16, 1.2)])
    assert not Budget(step, credit=0.19, allowance=0.0).affords(requests(16))
    assert Budget(step, credit=0.21, allowance=0.0).affords(requests(16))
    unknown = RoundCost()
    assert not Budget(unknown).affords(requests(4))
    unknown.observe(1, 1.0)
    assert Budget(unknown).affords(requests(4))  # a first trial is free


def test_limits_of_each_text_hold():
    cost = RoundCost(max_rows=33)
    cost.calibrate(cheap)
    budget = Budget(cost, credit=100)
    assert budget.choose(requests(3, 0, 5), [[1.0] * 9] * 3) == [3, 0, 5]
    assert budget.choose([], []) == []


def test_a_step_of_the_cost_is_paid_by_all_texts_together():
    """The first row beyond the batch is dear, the others are nearly free."""
    cost = RoundCost(max_rows=33)
    cost.recall([(8, 1.2), (9, 1.35), (16, 1.5)])
    budget = Budget(cost)
    counts = budget.choose(requests(*[16] * 8), [[0.8, 0.7]] * 8)
    assert min(counts) >= 1
    # One text alone would have to pay the step by itself, and cannot.
    assert budget.choose(requests(*[16] * 8), [[0.8, 0.7]] + [[]] * 7) == [0] * 8


def test_a_text_with_an_empty_purse_does_not_keep_others_from_drafting():
    cost = RoundCost(max_rows=33)
    cost.calibrate(cheap)
    budget = Budget(cost, credit=1.0, allowance=0.0)
    two = requests(16, 16)
    budget.observe([0, 1], [9, 0], [1, 1], 0.02 * cost(11))
    budget.observe([0, 1], [9, 0], [1, 1], 0.02 * cost(11))
    budget.observe([0, 1], [9, 0], [1, 1], 0.02 * cost(11))
    assert budget.purse(0) <= 0 < budget.purse(1)
    counts = budget.choose(two, [[1.0] * 9, [0.9] * 9])
    assert counts[0] == 0 < counts[1]


def test_a_text_that_can_pay_little_drafts_little_beside_one_that_can_pay_much():
    cost = RoundCost(max_rows=33)
    cost.recall([(2, 1.0), (3, 1.3), (4, 1.35), (33, 1.35 + 29 * 0.1)])
    budget = Budget(cost, credit=0.25, allowance=0.0)
    budget.observe([0, 1], [0, 4], [1, 5], 0.02)
    counts = budget.choose(requests(16, 16), [[0.95] * 4, [0.9] * 4])
    assert counts[0] <= 1 < counts[1]


def test_rows_that_are_free_cost_an_empty_purse_nothing():
    cost = RoundCost(max_rows=33)
    cost.recall([(2, 1.0), (9, 1.0), (33, 1.0)])
    budget = Budget(cost, credit=0.0, allowance=0.0)
    assert budget.choose(requests(5, 3), [[0.5] * 5, [0.4] * 5]) == [5, 3]


def test_a_text_of_a_large_batch_begins_with_more():
    cost = RoundCost(max_rows=64)
    cost.recall([(8, 1.2), (16, 1.6)])
    for size, credit in ((1, 0.3), (2, 0.3), (8, 0.6), (50, 1.0)):
        budget = Budget(cost, allowance=0.0)
        budget.choose(requests(*[4] * size), [[0.1]] * size)
        assert budget.purse(0) == pytest.approx(credit)
    assert Budget(cost, credit=2.0).purse(0) == 2.0

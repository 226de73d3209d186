import pytest

from kvctl.draft import AdaptiveLength


def started(time_of, **options):
    adaptive = AdaptiveLength(**options)
    adaptive.start(time_of)
    return adaptive


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
    adaptive = started(cheap, credit=10, max_nodes=8)
    sure = [1.0] * 20
    assert adaptive.choose(sure, 16) == 8
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


def test_calibrates_once():
    calls = []

    def measure(rows):
        calls.append(rows)
        return cheap(rows)

    adaptive = started(measure)
    seen = len(calls)
    adaptive.start(measure)
    assert seen > 0 and len(calls) == seen
    calls.clear()
    started(measure, max_nodes=0)
    assert calls == []


def test_refuses_nonsense():
    with pytest.raises(ValueError, match="max_nodes must not be negative, got -1"):
        AdaptiveLength(max_nodes=-1)

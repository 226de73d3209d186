import random

import pytest

from kvctl.draft import Acceptance


def test_prior_grows_with_the_match_and_falls_with_the_rank():
    acceptance = Acceptance()
    rates = [acceptance.rate(m) for m in (1, 2, 4, 8, 16, 64)]
    assert rates == sorted(rates) and rates[0] < 0.3 and rates[-1] > 0.9
    assert acceptance.rate(4) > acceptance.rate(4, 1) > acceptance.rate(4, 2)
    assert acceptance.rate(4, 2) == acceptance.rate(4, 7)


def test_learns_each_length_and_rank_by_itself():
    acceptance = Acceptance()
    rng = random.Random(1)
    for _ in range(400):
        acceptance.observe(1, 0, rng.random() < 0.8)
        acceptance.observe(8, 0, rng.random() < 0.1)
        acceptance.observe(8, 1, rng.random() < 0.6)
    assert acceptance.rate(1) == pytest.approx(0.8, abs=0.15)
    assert acceptance.rate(8) == pytest.approx(0.1, abs=0.15)
    assert acceptance.rate(8, 1) == pytest.approx(0.6, abs=0.15)
    assert acceptance.rate(4) == Acceptance().rate(4)


def test_forgets():
    acceptance = Acceptance()
    for _ in range(1000):
        acceptance.observe(3, 0, True)
    for _ in range(80):  # two memories
        acceptance.observe(3, 0, False)
    assert acceptance.rate(3) < 0.2


def test_path_rates_multiply_down_the_tree():
    acceptance = Acceptance()
    # root -> 1 -> 3, root -> 2
    rates = acceptance.path_rates([-1, 0, 0, 1], [0, 0, 1, 0], [0, 2, 2, 3])
    assert rates[0] == 1.0
    assert rates[1] == acceptance.rate(2)
    assert rates[2] == acceptance.rate(2, 1)
    assert rates[3] == acceptance.rate(2) * acceptance.rate(3)


def test_refuses_nonsense():
    with pytest.raises(ValueError, match="memory must be more than 1"):
        Acceptance(memory=1)

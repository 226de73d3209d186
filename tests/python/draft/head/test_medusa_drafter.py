"""Heads that guess several tokens at once."""

from __future__ import annotations

import pytest

from drafters import Always
from fake_heads import SumMedusa, TableMedusa, sum_token
from fake_runner import FakeRunner
from kvctl import Sampling, generate
from kvctl.draft import MedusaDrafter
from table_world import LIMIT, joint, statistic

PROMPTS = [[1, 2, 3], [4] * 20, [5, 6], [7]]


def target(**options):
    return FakeRunner(tokens_after=lambda context: sum_token(sum(context)), **options)


@pytest.mark.parametrize("sampling", [None, Sampling(temperature=3.0)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("pages", [64, 12])
def test_texts_are_plain(sampling, pages):
    options = {"max_new_tokens": 50, "sampling": sampling, "seed": [1, 2, 3, 4]}
    expected = [text.tokens for text in generate(target(), PROMPTS, **options)]
    drafter = Always(MedusaDrafter(SumMedusa(), nodes=6, adapt=False))
    got = generate(target(pages=pages), PROMPTS, drafter=drafter, **options)
    assert [text.tokens for text in got] == expected
    assert sum(sum(text.statistics.accepted) for text in got) > 0


def test_heads_that_are_right_are_accepted_whole():
    heads = SumMedusa(depth=3, spread=12.0)
    drafter = Always(MedusaDrafter(heads, nodes=3, adapt=False))
    text = generate(target(), [1, 2, 3], drafter=drafter, max_new_tokens=41)
    assert text.statistics.mean_acceptance_length == 4.0
    # They read the states that the last tokens came from.
    context = [1, 2, 3, *text.tokens]
    assert heads.asked == [sum(context[: 3 + 4 * i]) for i in range(10)]


@pytest.mark.parametrize("rule", ["auto", "recursive", "traversal"])
def test_the_joint_distribution_of_four_tokens(rule):
    drafter = Always(MedusaDrafter(TableMedusa(), candidates=2, nodes=5, adapt=False))
    counts, expected, drafted = joint(rule, drafter, trials=2000)
    assert drafted > 500
    assert statistic(counts, expected) < LIMIT


@pytest.mark.parametrize("name", ["nodes", "candidates"])
def test_a_size_of_zero_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        MedusaDrafter(SumMedusa(), **{name: 0})

import io

import pytest
from rich.console import Console

from fake_runner import FakeRunner
from kvctl import generate
from kvctl.bench.difference import first_difference
from kvctl.cli.report import print_comparison
from kvctl.engine.generate import Generation

PROMPT = [1, 2, 3]


@pytest.fixture
def runner():
    return FakeRunner()


def test_the_same_is_no_difference(runner):
    assert first_difference(runner, PROMPT, [4, 5], [4, 5]) is None


def test_the_gap_is_between_the_logits_of_the_two_tokens(runner):
    difference = first_difference(runner, PROMPT, [4, 5, 6], [4, 7, 6])
    logits = runner._logits([1, 2, 3, 4])
    assert (difference.index, difference.tokens) == (1, (5, 7))
    assert difference.gap == pytest.approx(abs(logits[5] - logits[7]))
    assert not difference.is_tie
    assert runner.cache.committed == {}


def test_a_shorter_text_is_no_tie(runner):
    difference = first_difference(runner, PROMPT, [4, 5], [4])
    assert difference.tokens == (5, -1) and not difference.is_tie


def comparison(runner, change, *, greedy=True):
    plain = generate(runner, PROMPT, max_new_tokens=8)
    tokens = list(plain.tokens)
    change(tokens)
    console = Console(record=True, width=200, file=io.StringIO())
    other = Generation(tokens, "length", plain.statistics)
    same = print_comparison(console, runner, PROMPT, plain, other, greedy=greedy)
    return same, console.export_text()


def test_report_of_the_same(runner):
    same, text = comparison(runner, lambda tokens: None)
    assert same and "The same 8 tokens" in text and "1.00x as fast" in text


def test_report_of_a_difference(runner):
    def change(tokens):
        tokens[3] = (tokens[3] + 1) % 40

    same, text = comparison(runner, change)
    assert not same and "Token 3 differs" in text


def test_report_of_a_tie():
    class Even(FakeRunner):
        def _logits(self, context):
            logits = super()._logits(context)
            logits[:] = -5.0
            logits[7], logits[9] = 2.0, 2.0 - 1e-5
            return logits

    def change(tokens):
        tokens[2] = 9

    same, text = comparison(Even(), change)
    assert same and "Token 2 is 7 or 9: a tie" in text
    assert not comparison(Even(), change, greedy=False)[0]

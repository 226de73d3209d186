"""A head and suffixes together over texts of two kinds, by a clock that only forwards move."""

from __future__ import annotations

import random

from fake_heads import ToldHead
from kvctl import generate
from kvctl.draft import HeadDrafter, SuffixDrafter
from kvctl.draft.mixed import drafter as mixed_drafter
from kvctl.draft.mixed import evidence
from kvctl.draft.mixed.agreement import Agreement
from simulated_time import Clock, TimedRunner

TOKENS, TEXTS, STEP = 40, 8, 0.1


def chosen(context, begin, count):
    """Return one of some numbers, which neither drafter can foresee."""
    return begin + random.Random(f"{context} {begin}").randrange(count)


def copied(context):
    """Pieces of six tokens, always the same ones in another order."""
    place = len(context) % 6
    return min(context[-1] + 1, 39) if place else 1 + 6 * chosen(context, 0, 3)


def misleading(context):
    """After the same two tokens comes always another one."""
    place = len(context) % 11
    if place == 1:
        return min(context[-1] + 1, 39)
    return 20 + 2 * chosen(context, 0, 4) if place == 0 else chosen(context, 28, 12)


def following(context):
    return copied(context) if context[0] == 1 else misleading(context)


COPIES = [[1, 2, i % 13] for i in range(TEXTS)]
MISLEADING = [[2, 30 + i % 8, i % 13, 5, 6] for i in range(TEXTS)]


def plain(prompt):
    text = list(prompt)
    for _ in range(TOKENS):
        text.append(following(text))
    return text[len(prompt) :]


class TimedHead(ToldHead):
    """Knows the texts but every fifth token; each of its forwards takes time."""

    def __init__(self, clock):
        prompts = COPIES + MISLEADING
        super().__init__(prompts, list(map(plain, prompts)))
        self.vocab_size, self.clock = 40, clock

    def forward(self, seq_ids, tokens, features, *, mask=None):
        self.clock.now += STEP
        return super().forward(seq_ids, tokens, features, mask=mask)


def seconds(monkeypatch, make):
    """Return what the texts of each kind take, one and one of the other by turns."""
    clock = Clock(monkeypatch)
    runner, drafter = TimedRunner(clock, following, row=0.06, pages=1000), make(clock)
    found = [0.0, 0.0]
    for pair in zip(COPIES, MISLEADING, strict=True):
        for kind, prompt in enumerate(pair):
            begin = clock.now
            text = generate(runner, prompt, max_new_tokens=TOKENS, drafter=drafter)
            assert text.tokens == plain(prompt)
            found[kind] += clock.now - begin
    return found


def head(clock):
    return HeadDrafter(TimedHead(clock), branching=4, beam=4, nodes=8)


def lost(monkeypatch):
    """Return how much slower both are than the better of the two, for each kind of text."""
    alone = [
        seconds(monkeypatch, make) for make in (head, lambda _: SuffixDrafter(), lambda _: None)
    ]
    both = seconds(monkeypatch, lambda clock: head(clock) | SuffixDrafter())
    assert min(alone)[0] < alone[2][0] and alone[0][1] < alone[2][1] < alone[1][1] * 1.1
    return [mine / min(times) - 1.0 for mine, *times in zip(both, *alone, strict=True)]


def test_suffixes_that_were_right_do_not_mislead_a_mixed_drafter(monkeypatch):
    assert max(lost(monkeypatch)) < 0.03


def test_without_what_the_head_says_of_them_they_do(monkeypatch):
    """The negative control: bets go by what each drafter says of its own tokens."""
    monkeypatch.setattr(mixed_drafter, "_SURE", 0.0)
    monkeypatch.setattr(Agreement, "observe", lambda *trial: None)
    monkeypatch.setattr(evidence, "_ask", lambda *token: None)
    assert lost(monkeypatch)[1] > 0.05

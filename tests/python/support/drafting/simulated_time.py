"""A clock that stands still but for the forwards of fake models, so that timings are exact."""

from __future__ import annotations

import importlib
import itertools
import random

import numpy as np

from fake_heads import SumHead
from fake_runner import FakeRunner


def fresh_token(total):
    """Return a token that depends on the sum of all tokens before it, and seldom comes again."""
    return random.Random(int(total)).randrange(1, 40)


#: The modules that time forwards.
CLOCKS = (
    "engine.rounds",
    "engine.drafting",
    "draft.model.growing_drafter",
    "draft.head.medusa_drafter",
)


#: What follows a context: what heads know, what lookup knows, either by turns, or neither.
WORLDS = {
    "fresh": lambda context: fresh_token(sum(context)),
    "repeats": lambda context: (context[-1] + 1) % 17,
    "both": lambda context: (
        fresh_token(sum(context)) if len(context) // 60 % 2 else (context[-1] + 1) % 17
    ),
    "turns": lambda context: (
        fresh_token(sum(context)) if len(context) % 9 < 4 or len(context) < 10 else context[-9]
    ),
    "neither": lambda context: fresh_token(3 * sum(context) + 1),
}


def let_drafting_pay(monkeypatch):
    """Let drafts take next to no time, whatever they take on this machine."""
    for name in CLOCKS:
        count = itertools.count(0.0, 1.0 if name == "engine.rounds" else 0.001)
        module = importlib.import_module(f"kvctl.{name}")
        monkeypatch.setattr(module, "perf_counter", count.__next__)


class Clock:
    """Seconds that forwards have taken."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        for name in CLOCKS:
            module = importlib.import_module(f"kvctl.{name}")
            monkeypatch.setattr(module, "perf_counter", lambda: self.now)


class TimedRunner(FakeRunner):
    """A target whose rounds take a second, and `row` more for each further row."""

    def __init__(self, clock, tokens_after, *, row=0.05, **options):
        super().__init__(tokens_after=tokens_after, **options)
        self.clock, self.row = clock, row

    def _rows(self, contexts):
        self.clock.now += 1.0 + self.row * (len(contexts) - 1)
        return super()._rows(contexts)


class TimedHead(SumHead):
    """A head whose forwards take `step` seconds, and a little more for each further entry."""

    def __init__(self, clock, *, step, row=0.005, **options):
        super().__init__(**options)
        self.clock, self.step, self.entry = clock, step, row
        self.forwards = []

    def forward(self, seq_ids, tokens, features, *, mask=None):
        self.clock.now += self.step + self.entry * (len(features) - 1)
        self.forwards.append((len(features), mask is not None))
        return super().forward(seq_ids, tokens, features, mask=mask)

    def row(self, total):
        row = np.zeros(self.size, np.float32)
        right = fresh_token(total)
        row[right if total % self.wrong else 1 + right % 39] = 3.0
        return row

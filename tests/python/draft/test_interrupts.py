"""A Ctrl-C at any line of a drafter: its cache is empty, and it drafts on as if nothing was."""

from __future__ import annotations

from pathlib import Path

import pytest

import kvctl
from fake_heads import SumHead, sum_token
from fake_runner import FakeRunner
from kvctl import generate
from kvctl.draft import HeadDrafter, ModelDrafter, StringDrafter, StringMap
from line_interrupt import interrupt_at_line
from pieces import Writer, pieces

DRAFT = Path(kvctl.__file__).parent / "draft"
FOLDERS = tuple(f"{DRAFT / name}/" for name in ("head", "model"))
PROMPTS = [[1, 2, 3], [4, 5]]


def head():
    """Return a target, a model or head that drafts for it, and the drafter."""
    model = SumHead()
    target = FakeRunner(tokens_after=lambda context: sum_token(sum(context)))
    return target, model, HeadDrafter(model, length=2)


def model():
    model = FakeRunner()
    return FakeRunner(), model, ModelDrafter(model, length=2)


def string():
    target, draft = pieces(3, 70), pieces(4, 60)
    model = Writer(draft)
    return Writer(target), model, StringDrafter(model, StringMap(draft, target), length=2)


@pytest.mark.parametrize("make", [head, model, string])
def test_an_interrupt_at_any_line(make):
    options = {"max_new_tokens": [3, 5]}
    expected = [text.tokens for text in generate(make()[0], PROMPTS, **options)]
    lines, interrupted = 0, True
    while interrupted:
        lines += 1
        target, model, drafter = make()
        try:
            with interrupt_at_line(lines, FOLDERS):
                generate(target, PROMPTS, drafter=drafter, **options)
            interrupted = False
        except KeyboardInterrupt:
            pass
        assert not model.cache.committed and not target.cache.committed
        got = generate(target, PROMPTS, drafter=drafter, **options)
        assert [text.tokens for text in got] == expected
        assert not model.cache.committed
    assert lines > 300

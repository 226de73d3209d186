"""Where prompts come from: the grammar, passages of texts, and the model itself."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, zip_longest
from pathlib import Path

from ...engine.compiled.runner import ModelRunner
from .collect import Prompt
from .prompts import PromptGrammar, passages

_LONGEST = 320  # tokens of a prompt


def make_prompts(
    runner: ModelRunner,
    count: int,
    *,
    texts: Sequence[Path] = (),
    free: float = 0.25,
    seed: int = 0,
) -> list[Prompt]:
    """Return prompts in the model's chat template; those of all kinds in turns.

    Parameters
    ----------
    runner
        The target.
    count
        How many there are.
    texts
        Text files; a tenth of the prompts at most are about their passages.
    free
        The share of conversations that the model writes whole: its prompt is the beginning of the
        template, and what it says in the user's place is what it was trained to be asked.
    seed
        Of the grammar.

    Raises
    ------
    ValueError
        If the share is not from 0 to 1.
    """
    if not 0 <= free <= 1:
        raise ValueError(f"the share of free prompts must be from 0 to 1, not {free}")
    start = Prompt(_before_the_user(runner), turns=2)
    own = [start] * round(count * free)
    read = list(islice(passages(list(texts)), count // 10))
    made = list(islice(PromptGrammar(seed), max(0, count - len(own) - len(read))))
    asked = [[Prompt(runner.text.encode_chat(text)) for text in group] for group in (made, read)]
    # The rarer kinds are spread evenly among the others.
    groups = [*asked, own]
    spread = sorted(
        ((i + 0.5) / len(group), kind, i)
        for kind, group in enumerate(groups)
        for i in range(len(group))
    )
    prompts = [groups[kind][i] for _, kind, i in spread]
    return [prompt for prompt in prompts if len(prompt.tokens) <= _LONGEST]


def _before_the_user(runner: ModelRunner) -> list[int]:
    """Return the tokens of the chat template up to the user's first word."""
    start = []
    first, second = (runner.text.encode_chat(word) for word in ("Apples", "the river"))
    for one, other in zip_longest(first, second):
        if one != other:
            break
        start.append(one)
    return start

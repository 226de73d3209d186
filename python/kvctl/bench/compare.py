"""Two results of `kvctl bench spec` compared, question by question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from .figures import Interval, ratio_interval
from .result import Answer, Configuration, Result

Key: TypeAlias = tuple[int | str, str, int]
"""Question, category and turn."""


@dataclass(frozen=True)
class Pair:
    """A configuration of each result, over the questions that both answered.

    Attributes
    ----------
    first, second : Configuration
        Of the first and the second result.
    questions : int
        How many both answered.
    speed : Interval
        The second's tokens per second over the first's.
    speedup : Interval
        The second's speed-up over plain decoding, over the first's. Each is over the plain decoding
        of its own result, so a machine that became slower between the two cancels out.
    tokens_per_round : Interval
        The second's tokens per round over the first's.
    same : int
        Answers that are the same tokens in both.
    answers : int
        Answers that both have.
    """

    first: Configuration
    second: Configuration
    questions: int
    speed: Interval
    speedup: Interval
    tokens_per_round: Interval
    same: int
    answers: int


def compare(first: Result, second: Result) -> list[Pair]:
    """Compare the configurations that two results share, or the only drafter of each.

    Raises
    ------
    ValueError
        If no question has the same id and category in both, or no configurations belong together.
    """
    found = []
    for one, other in _pairs(first, second):
        found.append(_compare(first, one, second, other))
    return found


def complaints(first: Result, second: Result) -> list[str]:
    """Return what makes the comparison of two results unfair, in sentences."""
    found = []
    if first.questions["sha256"] != second.questions["sha256"]:
        found.append("The question sets differ: only questions of the same id are compared.")
    for name in ("max_new_tokens", "temperature", "seed", "raw", "passes"):
        values = [result.settings.get(name) for result in (first, second)]
        if values[0] != values[1]:
            found.append(f"The results differ in {name}: {values[0]} and {values[1]}.")
    if first.model != second.model:
        found.append(f"The models differ: {first.model} and {second.model}.")
    for name in ("cpu", "isa", "openmp_threads"):
        values = [result.machine.get(name) for result in (first, second)]
        if values[0] != values[1]:
            found.append(f"The machines differ in {name}: {values[0]} and {values[1]}.")
    return found


def _pairs(first: Result, second: Result) -> list[tuple[Configuration, Configuration]]:
    shared = [one for one in first.configurations if one in second.configurations]
    drafted = [
        [one for one in result.configurations if one.drafter is not None]
        for result in (first, second)
    ]
    pairs = [(one, one) for one in shared]
    if not any(one.drafter for one in shared) and len(drafted[0]) == len(drafted[1]) == 1:
        pairs.append((drafted[0][0], drafted[1][0]))
    if not pairs:
        names = [", ".join(one.name for one in result.configurations) for result in (first, second)]
        raise ValueError(f"no configuration is in both results: {names[0]}; and {names[1]}")
    return pairs


def _compare(first: Result, one: Configuration, second: Result, other: Configuration) -> Pair:
    sides = [(first, one), (second, other)]
    drafted = [_answers(result, wanted) for result, wanted in sides]
    plain = [_answers(result, wanted.plain) for result, wanted in sides]
    shared = drafted[0].keys() & drafted[1].keys() & plain[0].keys() & plain[1].keys()
    ids = list(dict.fromkeys(key[0] for key in drafted[0] if key in shared))
    if not ids:
        raise ValueError("no question has the same id and category in both results")

    def rates(answers: dict[Key, Answer]) -> list[float]:
        """Return tokens per second of each question."""
        found = []
        for id in ids:
            mine = [answers[key] for key in shared if key[0] == id]
            found.append(sum(len(a.tokens) for a in mine) / sum(a.least_seconds for a in mine))
        return found

    def counts(answers: dict[Key, Answer]) -> list[list[float]]:
        """Return emitted tokens, and rounds, of each question."""
        rounds = [
            [part for key in shared if key[0] == id for part in answers[key].rounds] for id in ids
        ]
        return [[sum(part.emitted for part in mine) for mine in rounds], [len(m) for m in rounds]]

    # Questions that were answered in one batch are resampled together.
    units = np.arange(len(ids)) // max(one.batch, other.batch)
    own = [np.array(rates(side)) for side in drafted]
    base = [np.array(rates(side)) for side in plain]
    return Pair(
        one,
        other,
        len(ids),
        ratio_interval(np.stack([own[1], own[0]]), units, means=True),
        ratio_interval(np.stack([own[1], base[1], own[0], base[0]]), units),
        ratio_interval(np.array([*counts(drafted[1]), *counts(drafted[0])]), units),
        sum(drafted[0][key].tokens == drafted[1][key].tokens for key in shared),
        len(shared),
    )


def _answers(result: Result, configuration: Configuration) -> dict[Key, Answer]:
    number = result.configurations.index(configuration)
    return {(one.question_id, one.category, one.turn): one for one in result.of(number)}

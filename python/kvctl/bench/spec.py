"""The whole of `kvctl bench spec`: measure, compare the texts, look closely at one question."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..draft import make_drafter
from ..draft.identity import identity_of
from .conversation import answer_text, encode_turn
from .difference import first_difference
from .machine_state import describe_machine, machine_load
from .measure import Measurement
from .progress import Progress
from .questions import Question
from .result import Answer, Configuration, Difference, Result
from .settings import Settings

if TYPE_CHECKING:
    from ..engine.protocol import Runner

#: The rules whose text is plain decoding's, seed by seed, also at a temperature.
SAME_TEXT_RULES = ("auto", "target_only")
_CONTEXT_TOKENS = 12


def bench_spec(
    runner: Runner,
    questions: Sequence[Question],
    configurations: Sequence[Configuration],
    settings: Settings | None = None,
    *,
    model: str = "",
    name: str = "",
    progress: Progress | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Result:
    """Measure configurations beside plain decoding of the same engine.

    Parameters
    ----------
    runner
        The model; its cache needs room for the largest batch.
    questions
        What is answered.
    configurations
        What is compared; plain decoding is added for every batch size.
    settings
        How answers are generated.
    model, name
        What the result calls the model and the questions.
    progress
        Where to write what is done, and what to go on from.
    advance
        Called after each group of questions that a configuration answered.

    Returns
    -------
    Result

    Raises
    ------
    ValueError
        If there is no question or configuration, or a drafter or rule is unknown or refused; if no
        question has room in the model's context; if `progress` is of another measurement.
    """
    if not questions:
        raise ValueError("there is no question")
    if not configurations:
        raise ValueError("there is no configuration to compare with plain decoding")
    settings = Settings() if settings is None else settings
    measurement = Measurement(
        runner, questions, configurations, settings, progress=progress, advance=advance
    )
    described, before = describe_machine(), machine_load()
    asked = {"name": name, "count": len(questions), "sha256": _digest(questions)}
    if progress is not None:
        what: dict[str, Any] = {
            "model": model,
            "library": identity_of(runner),
            "drafters": {
                name: identity_of(make_drafter(name, runner))
                for name in {one.drafter for one in configurations}
                if name is not None
            },
            "questions": asked,
            "settings": asdict(settings),
            "configurations": [asdict(one) for one in measurement.configurations],
            "machine": described,
        }
        measurement.take_up(progress.begin(what, measurement.parts, before))
        before = progress.before
    machine = described | {"before": before}
    measurement.run()
    if not measurement.answers:
        raise ValueError(
            f"no question has room in the model's context for {settings.max_new_tokens} new tokens"
        )
    machine |= {"after": machine_load(), "plain_step": _plain_step(measurement)}
    timed = sum(sum(one.seconds) for one in measurement.answers)
    result = Result(
        model,
        asked,
        asdict(settings)
        | {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "measured_seconds": timed,
            "driver_overhead": measurement.run_seconds / timed - 1.0,
        }
        | ({"resumed": progress.resumed} if progress is not None and progress.resumed else {}),
        machine,
        measurement.configurations,
        measurement.answers,
        skipped=measurement.skipped,
    )
    result.differences = _differences(runner, questions, result, settings)
    _look_closely(runner, result, measurement)
    return result


def _digest(questions: Sequence[Question]) -> str:
    return hashlib.sha256(repr(list(questions)).encode()).hexdigest()


def same_text_expected(configuration: Configuration, temperature: float) -> bool:
    """Return whether a configuration's texts should be plain decoding's, token for token."""
    return temperature == 0 or configuration.rule in SAME_TEXT_RULES


def _plain_step(measurement: Measurement) -> dict[str, float]:
    """Return quantiles of what a plain step took: how quiet the machine was."""
    steps = [
        one.times.behind_prefill / len(one.rounds)
        for one in measurement.answers
        if measurement.configurations[one.configuration].drafter is None and one.rounds
    ]
    if not steps:
        return {}
    low, middle, high = np.quantile(steps, [0.1, 0.5, 0.9])
    return {"p10": float(low), "median": float(middle), "p90": float(high)}


def _differences(
    runner: Runner, questions: Sequence[Question], result: Result, settings: Settings
) -> list[Difference]:
    """Return the first difference of every text that should be plain decoding's and is not."""
    found = []
    by_id = {question.id: question for question in questions}
    numbers = {one: i for i, one in enumerate(result.configurations)}
    texts = {(one.configuration, one.question_id, one.turn): one for one in result.answers}
    for one in result.answers:
        configuration = result.configurations[one.configuration]
        plain = texts[numbers[configuration.plain], one.question_id, one.turn]
        if one.tokens == plain.tokens or not same_text_expected(
            configuration, settings.temperature
        ):
            continue
        gap = None
        if settings.temperature == 0:
            said = [texts[0, one.question_id, turn].text for turn in range(one.turn)]
            prompt = encode_turn(runner.text, by_id[one.question_id], said, raw=bool(settings.raw))
            difference = first_difference(runner, prompt, plain.tokens, one.tokens)
            gap = difference.gap if difference is not None else None
        found.append(_difference(runner, plain, one, gap))
    return found


def _difference(runner: Runner, plain: Answer, one: Answer, gap: float | None) -> Difference:
    pairs = zip(plain.tokens, one.tokens, strict=False)
    index = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
    if gap is not None and not np.isfinite(gap):
        gap = None
    end = index + _CONTEXT_TOKENS
    before, first, second = (
        answer_text(runner.text, tokens)
        for tokens in (
            plain.tokens[max(0, index - _CONTEXT_TOKENS) : index],
            plain.tokens[index:end],
            one.tokens[index:end],
        )
    )
    where = (one.configuration, one.question_id, one.turn, index)
    return Difference(*where, before, first, second, gap)


def _look_closely(runner: Runner, result: Result, measurement: Measurement) -> None:
    """Keep the trees of one turn: the one whose tokens per round are the median."""
    drafted = [one for one in result.answers if any(part.nodes for part in one.rounds)]
    if not drafted:
        return

    def emitted(one: Answer) -> float:
        return (len(one.tokens) - 1) / len(one.rounds)

    shown = sorted(drafted, key=emitted)[len(drafted) // 2]
    tokens = set()
    for one in result.answers:
        if (one.question_id, one.turn) == (shown.question_id, shown.turn):
            one.trees = measurement.trees[one.configuration, one.question_id, one.turn]
            tokens |= set(one.tokens)
            tokens |= {token for nodes, _, _ in one.trees for token in nodes}
    result.tokens = {str(token): runner.text.decode([token]) for token in sorted(tokens)}


def result_name(path: str | Path) -> str:
    """Return what a result calls a question set."""
    return Path(path).name.split(".")[0]

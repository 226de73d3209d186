"""Figures of a measurement: speed-up with its interval, acceptance, times; by category."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .._ffi.untrusted import reading
from .result import Answer, Result, Round

Float64 = npt.NDArray[np.float64]

#: Resamplings of the questions, and their seed: the same answers give the same interval.
RESAMPLINGS, SEED = 2000, 20
#: An interval of fewer questions, or batches of them, would say little.
LEAST_UNITS = 5
#: An interval that is wider than this part of its value is called wide.
WIDE = 0.2
#: The category of all questions together.
OVERALL = "overall"


class Interval(NamedTuple):
    """A value, and where 95 % of the values of resampled questions are."""

    value: float
    low: float
    high: float

    @property
    def concludes(self) -> bool:
        """Whether there is an interval that is on one side of 1 and not wide."""
        return not self.low <= 1 <= self.high and self.high - self.low <= WIDE * self.value


@dataclass(frozen=True)
class Figures:
    """One configuration in one category.

    Attributes
    ----------
    configuration : int
        Index in `Result.configurations`.
    category : str
        Or `OVERALL`.
    questions, tokens : int
        How many questions were answered, and the tokens of their answers.
    tokens_per_second : float
        Mean over the questions of tokens per second, the prefill included: Spec-Bench's figure.
    speedup : Interval
        `tokens_per_second` over plain decoding's: Spec-Bench's figure.
    decode_speedup : Interval
        Tokens per second of everything behind the prefill, all questions together, over plain
        decoding's.
    tokens_per_round : float
        Mean tokens of a round, plain steps of an adaptive drafter among them: what Spec-Bench calls
        the mean accepted tokens. The token behind the accepted drafts counts.
    acceptance_length : float
        The same of the rounds that verified drafts; NaN where there was none.
    reached, accepted : list of int
        By depth: rounds in which a draft was up for acceptance there, and was accepted.
    mean_depth : float
        How deep the drafts of a speculative round were; NaN where there was none.
    seconds : dict
        By part, all questions together: prefill, start, draft, forward, verify, commit, replay.
    same : int
        Answers that are plain decoding's, token for token.
    answers : int
        How many there are.
    """

    configuration: int
    category: str
    questions: int
    tokens: int
    tokens_per_second: float
    speedup: Interval
    decode_speedup: Interval
    tokens_per_round: float
    acceptance_length: float
    reached: list[int]
    accepted: list[int]
    mean_depth: float
    seconds: dict[str, float]
    same: int
    answers: int

    @property
    def rates(self) -> list[float]:
        """Acceptance by depth, conditional on being reached; NaN where it never was."""
        pairs = zip(self.accepted, self.reached, strict=True)
        return [a / n if n else math.nan for a, n in pairs]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, null where there is no number."""
        content: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, Interval):
                content[name] = {key: _number(part) for key, part in value._asdict().items()}
            else:
                content[name] = _number(value)
        content["rates"] = [_number(rate) for rate in self.rates]
        return content


def figures_from_json(values: Any, result: Result) -> list[Figures]:
    """Read what `Figures.to_json` wrote of a result.

    Raises
    ------
    ValueError
        If they are no such figures.
    """
    found = []
    with reading("the figures"):
        for one in values:
            fields = {name: one[name] for name in Figures.__dataclass_fields__}
            for name, value in fields.items():
                if value is None:
                    fields[name] = math.nan
                elif name in ("speedup", "decode_speedup"):
                    parts = (value[part] for part in Interval._fields)
                    fields[name] = Interval(*(math.nan if p is None else float(p) for p in parts))
            if not 0 <= fields["configuration"] < len(result.configurations):
                raise ValueError("figures of a configuration that the result does not have")
            found.append(Figures(**fields))
    return found


def figures_of(result: Result) -> list[Figures]:
    """Return the figures of every configuration, overall first and then by category."""
    categories = list(dict.fromkeys(one.category for one in result.answers))
    found = []
    for number, configuration in enumerate(result.configurations):
        plain = result.of(result.configurations.index(configuration.plain))
        drafted = result.of(number)
        for category in (OVERALL, *(categories if len(categories) > 1 else ())):
            pair = [
                [one for one in answers if category in (OVERALL, one.category)]
                for answers in (plain, drafted)
            ]
            if pair[1]:
                found.append(_figures(number, category, pair[0], pair[1], configuration.batch))
    return found


def _figures(
    number: int, category: str, plain: Sequence[Answer], drafted: Sequence[Answer], batch: int
) -> Figures:
    base, own = _by_question(plain), _by_question(drafted)
    units = _units(len(own), batch)
    rates, base_rates = own[:, 0] / own[:, 1], base[:, 0] / base[:, 1]
    rounds = [one for answer in drafted for one in answer.rounds]
    speculative = [one for one in rounds if one.nodes]
    reached, accepted = by_depth(speculative)
    texts = {(one.question_id, one.turn): one.tokens for one in plain}
    parts = ("prefill", "start", "draft", "forward", "verify", "commit", "replay")
    return Figures(
        number,
        category,
        len(own),
        int(own[:, 0].sum()),
        float(rates.mean()),
        ratio_interval(np.stack([rates, base_rates]), units, means=True),
        ratio_interval(np.stack([own[:, 2], own[:, 3], base[:, 2], base[:, 3]]), units),
        _mean([one.emitted for one in rounds]),
        _mean([one.emitted for one in speculative]),
        reached,
        accepted,
        _mean([one.depth for one in speculative]),
        {part: sum(getattr(one.times, part) for one in drafted) for part in parts},
        sum(texts.get((one.question_id, one.turn)) == one.tokens for one in drafted),
        len(drafted),
    )


def _by_question(answers: Sequence[Answer]) -> Float64:
    """Return (questions, 4): tokens, seconds, tokens behind the first ones, and their seconds."""
    sums: dict[int | str, list[float]] = {}
    for one in answers:
        row = sums.setdefault(one.question_id, [0.0] * 4)
        values = (len(one.tokens), one.least_seconds, len(one.tokens) - 1, one.times.behind_prefill)
        for i, value in enumerate(values):
            row[i] += value
    return np.array(list(sums.values()))


def _units(questions: int, batch: int) -> npt.NDArray[np.int64]:
    """Return which unit of resampling each question is in: those of a batch go together."""
    return np.arange(questions) // batch


def resampled(units: npt.NDArray[np.int64]) -> Float64:
    """Return (RESAMPLINGS, questions): how often each question is in each resampling."""
    count = int(units.max()) + 1
    draws = np.random.default_rng(SEED).multinomial(
        count, np.full(count, 1 / count), size=RESAMPLINGS
    )
    weights: Float64 = draws[:, units].astype(np.float64)
    return weights


def ratio_interval(
    values: Float64, units: npt.NDArray[np.int64], *, means: bool = False
) -> Interval:
    """Return a ratio over questions, with a percentile bootstrap by question.

    Parameters
    ----------
    values
        (4, questions): the ratio is (sum of 0 / sum of 1) / (sum of 2 / sum of 3). With `means`
        (2, questions): sum of 0 / sum of 1.
    units
        (questions,) which of them are resampled together.

    Returns
    -------
    Interval
        Its ends are NaN where there are fewer than `LEAST_UNITS` units.
    """
    weights = np.concatenate([np.ones((1, len(units))), resampled(units)])
    sums = weights @ values.T
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = sums[:, 0] / sums[:, 1]
        if not means:
            ratios = ratios / (sums[:, 2] / sums[:, 3])
    if not np.isfinite(ratios[0]):
        return Interval(math.nan, math.nan, math.nan)
    if units.max() + 1 < LEAST_UNITS:
        return Interval(float(ratios[0]), math.nan, math.nan)
    low, high = np.nanpercentile(ratios[1:], [2.5, 97.5])
    return Interval(float(ratios[0]), float(low), float(high))


def by_depth(rounds: Sequence[Round]) -> tuple[list[int], list[int]]:
    """Return by depth in how many rounds a draft was up for acceptance, and was accepted."""
    deepest = max((one.depth for one in rounds), default=0)
    reached = [sum(one.reached > depth for one in rounds) for depth in range(deepest)]
    accepted = [sum(one.accepted > depth for one in rounds) for depth in range(deepest)]
    return reached, accepted


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value

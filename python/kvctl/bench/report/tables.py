"""The tables of a report, for any format."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..figures import OVERALL, Figures, Interval, figures_of
from ..result import Result
from ..spec import same_text_expected


class Cell(NamedTuple):
    """A cell of a table: what stands in it, and what sorts it."""

    text: str
    value: float | str

    @classmethod
    def of(cls, value: float, form: str = ".2f", unit: str = "") -> Cell:
        """Return a number's cell; a dash where there is none."""
        if math.isnan(value):
            return cls("-", -math.inf)
        return cls(format(value, form) + unit, value)


@dataclass
class Table:
    """A table with its title and what must be said of it.

    Attributes
    ----------
    title, note
        Above and below it.
    columns
        Their heads; the first column names the row.
    rows
        A cell for each column.
    """

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    note: str = ""


@dataclass
class Content:
    """A result, its figures, computed unless given, and its tables."""

    result: Result
    figures: list[Figures] = field(default_factory=list)
    tables: list[Table] = field(init=False)
    warnings: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.figures = self.figures or figures_of(self.result)
        tables = (self._overall(), self._by_category(), self._acceptance(), self._times())
        self.tables = [one for one in tables if one.rows]
        self.warnings = self._warnings()

    @property
    def overall(self) -> list[Figures]:
        """The figures of all questions together, of each configuration in order."""
        return [one for one in self.figures if one.category == OVERALL]

    def name(self, figures: Figures) -> str:
        """Return the name of the figures' configuration."""
        return self.result.names[figures.configuration]

    def _overall(self) -> Table:
        rows = []
        for one in self.overall:
            drafted = self.result.configurations[one.configuration].drafter is not None
            same = Cell(f"{one.same} of {one.answers}", one.same / one.answers)
            rows.append(
                [
                    Cell(self.name(one), self.name(one)),
                    Cell.of(one.tokens_per_second, ".1f"),
                    _interval(one.speedup) if drafted else Cell("1", 1.0),
                    _interval(one.decode_speedup) if drafted else Cell("1", 1.0),
                    Cell.of(one.acceptance_length),
                    Cell.of(one.tokens_per_round),
                    Cell.of(one.mean_depth, ".1f"),
                    same if drafted else Cell("-", -1.0),
                ]
            )
        return Table(
            "All questions",
            [
                "configuration",
                "tokens/s",
                "speed-up",
                "behind the prefill",
                "acceptance length",
                "tokens/round",
                "draft depth",
                "same text",
            ],
            rows,
            "Speed-ups are over plain decoding of the same engine, with 95 % bootstrap intervals "
            "by question; the first is Spec-Bench's, a ratio of mean tokens/s with the prefill. "
            "Acceptance length is the mean tokens of a round that verified drafts, the token "
            "behind the accepted drafts included; tokens/round counts plain steps too, as "
            "Spec-Bench does.",
        )

    def _by_category(self) -> Table:
        categories = list(dict.fromkeys(one.category for one in self.figures))[1:]
        drafted = [one for one in self.overall if self._is_drafted(one)]
        rows = []
        for category in categories:
            row = [Cell(category, category)]
            for whole in drafted:
                found = self._find(whole.configuration, category)
                row.append(_interval(found.speedup) if found else Cell("-", -math.inf))
                row.append(Cell.of(found.acceptance_length if found else math.nan))
            rows.append(row)
        names = [self.name(one) for one in drafted]
        heads = [head for name in names for head in (name, "length")]
        return Table(
            "Speed-up by category", ["category", *heads], rows, "Length is the acceptance length."
        )

    def _acceptance(self) -> Table:
        drafted = [one for one in self.overall if one.reached]
        deepest = max((len(one.reached) for one in drafted), default=0)
        rows = []
        for one in drafted:
            cells = [
                Cell.of(100 * rate, ".0f", " %") if rate == rate else Cell("-", -1.0)
                for rate in one.rates
            ]
            blank = [Cell("", -2.0)] * (deepest - len(cells))
            rows.append([Cell(self.name(one), self.name(one)), *cells, *blank])
        return Table(
            "Acceptance by depth",
            ["configuration", *map(str, range(1, deepest + 1))],
            rows,
            "Of the rounds that reached a depth, those that accepted a draft there.",
        )

    def _times(self) -> Table:
        rows = []
        parts = list(self.overall[0].seconds)
        used = [part for part in parts if any(one.seconds[part] for one in self.overall)]
        for one in self.overall:
            whole = sum(one.seconds.values())
            shares = [Cell.of(100 * one.seconds[part] / whole, ".1f", " %") for part in used]
            seconds = Cell.of(whole, ".2f")
            rows.append([Cell(self.name(one), self.name(one)), seconds, *shares])
        return Table("Where the time goes", ["configuration", "seconds", *used], rows)

    def _warnings(self) -> list[str]:
        result, found = self.result, []
        for one in self.overall:
            if not self._is_drafted(one):
                continue
            value, low, high = one.speedup
            name, units = self.name(one), "too few questions for an interval"
            if math.isnan(low):
                found.append(f"{name}: {units}; what the speed-up is cannot be concluded.")
            elif low <= 1 <= high:
                found.append(
                    f"{name}: the interval of the speed-up, {low:.2f} to {high:.2f}, has 1 in it; "
                    "these questions do not tell whether it is faster than plain decoding."
                )
            elif not one.speedup.concludes:
                found.append(
                    f"{name}: the interval of the speed-up is wide, {low:.2f} to {high:.2f}; more "
                    "questions or passes would narrow it."
                )
            elif value < 1:
                found.append(f"{name}: slower than plain decoding.")
        temperature = result.settings["temperature"]
        names = result.names
        for number, configuration in enumerate(result.configurations):
            count = sum(one.configuration == number for one in result.differences)
            if count:
                found.append(
                    f"{names[number]}: {count} texts are not plain decoding's, and should be. "
                    "The first differences stand below."
                )
            elif not same_text_expected(configuration, temperature):
                found.append(
                    f"{names[number]}: its texts are others than plain decoding's, drawn from "
                    "the same distribution if the rule is lossless (kvctl check rule)."
                )
        if result.skipped:
            found.append(
                f"{len(result.skipped)} turns have no room in the model's context and were skipped."
            )
        before, after = result.machine["before"]["load"], result.machine["after"]["load"]
        busy = max(before, after)
        if busy > result.machine["cpus"] + 1:
            found.append(
                f"The machine was busy: {busy:g} threads wanted its {result.machine['cpus']} CPUs. "
                "Times are inflated, and speed-ups are rough."
            )
        return found

    def _is_drafted(self, figures: Figures) -> bool:
        return self.result.configurations[figures.configuration].drafter is not None

    def _find(self, configuration: int, category: str) -> Figures | None:
        for one in self.figures:
            if (one.configuration, one.category) == (configuration, category):
                return one
        return None


def _interval(interval: Interval) -> Cell:
    value, low, high = interval
    if math.isnan(value):
        return Cell("-", -math.inf)
    ends = "" if math.isnan(low) else f" [{low:.2f}, {high:.2f}]"
    return Cell(f"{value:.2f}x{ends}", value)


def machine_lines(result: Result) -> Sequence[str]:
    """Return what a reader must know of the machine, a fact a line."""
    machine = result.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"{machine['cpu']}, {machine['cpus']} CPUs, {machine['isa']}, "
        f"{machine['openmp_threads']} threads; {machine['system']}",
        f"Python {machine['python']}, {versions}",
        f"load {machine['before']['load']:g} before, {machine['after']['load']:g} after",
    ]
    step = machine.get("plain_step")
    if step:
        lines.append(
            f"a plain step: median {1e3 * step['median']:.1f} ms, from {1e3 * step['p10']:.1f} to "
            f"{1e3 * step['p90']:.1f} ms in 80 % of the answers"
        )
    lines.append(f"the driver's own time: {result.settings['driver_overhead']:.2%}")
    resumed = result.settings.get("resumed", 0)
    if resumed:
        lines.append(
            f"interrupted and resumed {resumed} times: drafters that learn from earlier texts "
            "began anew there"
        )
    return lines

"""`kvctl bench compare`: two results, paired by question."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from ...bench.figures import Interval


def compare_command(
    first: Annotated[Path, typer.Argument(help="A result.json of 'kvctl bench spec'.")],
    second: Annotated[Path, typer.Argument(help="Another one.")],
) -> None:
    """Compare two results question by question: how much the second gains on the first."""
    from ...bench.compare import compare, complaints
    from ...bench.result import Result

    results = [Result.load(path) for path in (first, second)]
    pairs = compare(*results)
    console = Console(soft_wrap=True, highlight=False)
    table = Table(title="the second over the first, with 95 % intervals by question")
    for i, column in enumerate(("", "speed", "speed-up", "tokens/round", "same text")):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for pair in pairs:
        name = pair.first.name
        if pair.second != pair.first:
            name = f"{pair.second.name} over {name}"
        intervals = (pair.speed, pair.speedup, pair.tokens_per_round)
        same = f"{pair.same} of {pair.answers}"
        table.add_row(name, *map(_cell, intervals), same)
    console.print(table)
    console.print(
        f"{pairs[0].questions} questions. speed: tokens/s; speed-up: over each result's own plain "
        "decoding, so that a machine that became slower cancels out.",
        markup=False,
    )
    for complaint in complaints(*results):
        console.print(complaint, style="yellow", markup=False)


def _cell(interval: Interval) -> str:
    value, low, high = interval
    if value != value:
        return "-"
    return f"{value:.3f}x" + (f" \\[{low:.3f}, {high:.3f}]" if low == low else "")

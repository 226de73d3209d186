"""`kvctl bench replay`: every rule, tree and budget over a recorded trace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


def replay_command(
    trace: Annotated[Path, typer.Argument(help="What 'kvctl trace' wrote.")],
    rules: Annotated[
        list[str] | None, typer.Option("--rule", "-r", help="By default all rules.")
    ] = None,
    depths: Annotated[str, typer.Option("--depth", help="Limits, with commas between.")] = "",
    widths: Annotated[str, typer.Option("--width", help="Children of a node.")] = "",
    nodes: Annotated[str, typer.Option("--nodes", help="Drafted nodes of a round.")] = "",
    cost: Annotated[
        str,
        typer.Option(
            help="What verifying rows costs in plain steps, as rows:cost with commas between; "
            "'kvctl bench steps' measures it."
        ),
    ] = "1:1",
    draft_cost: Annotated[float, typer.Option(min=0.0, help="Of a drafted node.")] = 0.0,
    drawn: Annotated[
        str | None, typer.Option(help="Declare all nodes drawn like this: deterministic, say.")
    ] = None,
) -> None:
    """Show the exact expected tokens of a round, and the speed-up for given costs."""
    from ...bench.replays import Cost, replay_all
    from ...verification import Trace

    found = replay_all(
        Trace.load(trace),
        Cost.parse(cost, draft_cost),
        rules=rules or (),
        depths=_limits(depths, "--depth"),
        widths=_limits(widths, "--width"),
        nodes=_limits(nodes, "--nodes"),
        drawn=drawn,
    )
    console = Console(soft_wrap=True, highlight=False)
    table = Table(title=f"{trace.name}, exact expectations")
    for i, column in enumerate(("rule", "depth", "width", "nodes", "tokens/round", "speed-up")):
        table.add_column(column, justify="left" if i == 0 else "right")
    best = max((one.speedup for one in found if one.replay is not None), default=0.0)
    for one in found:
        limits = ["all" if n is None else str(n) for n in (one.depth, one.width, one.nodes)]
        if one.replay is None:
            cells = ["refused", "-"]
        else:
            mark = " *" if one.speedup == best else ""
            cells = [f"{one.replay.mean_emitted:.3f}", f"{one.speedup:.3f}x{mark}"]
        table.add_row(one.rule, *limits, *cells)
    console.print(table)
    notes = ["* is the best."]
    if any(one.replay is None for one in found):
        notes.append("A refused rule would be biased for these drafts, or takes no trees.")
    if "typical" in {one.rule for one in found}:
        notes.append("typical is lossy.")
    console.print(" ".join(notes), markup=False)


def _limits(text: str, name: str) -> list[int | None]:
    if not text:
        return [None]
    try:
        return [None if part == "all" else int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{name} takes numbers or 'all' with commas between, not {text}") from None

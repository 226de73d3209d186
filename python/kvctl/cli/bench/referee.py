"""`kvctl bench referee`: every published acceptance rule on random models, exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

_TITLE = """# Acceptance rules, refereed

"""
_END = """
Each rule that kvctl does not ship is a function in `python/kvctl/referee/rules`.
`kvctl bench referee` makes this page. `kvctl check rule module:function` tries a rule of your own
on such models.
"""


def referee_command(
    models: Annotated[int, typer.Option(min=1, help="Pairs of random models.")] = 10,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the page here, not to stdout.")
    ] = None,
) -> None:
    """Print a table of all rules: exact mean tokens of a round, lossless or not."""
    from ..._ffi.replace_file import replacing
    from ...referee import ENTRIES, SHAPES, RandomModel
    from ...referee.table import rows_of, to_markdown

    pairs = [RandomModel(seed) for seed in range(models)]
    with Progress(transient=True) as progress:
        task = progress.add_task("enumerating", total=len(ENTRIES) * len(SHAPES))
        rows = rows_of(pairs, advance=lambda: progress.advance(task))
    text = _TITLE + to_markdown(rows, pairs) + _END
    if output is None:
        typer.echo(text, nl=False)
        return
    with replacing(output) as unfinished:
        unfinished.write_text(text, encoding="utf-8")

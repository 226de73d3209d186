"""`kvctl check bitwise`: whether the number of rows, sequences or threads changes a logit."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from ...open_runner import MODEL_HELP, open_runner


def bitwise_command(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    rows: Annotated[int, typer.Option(min=2, help="The most rows of a forward.")] = 16,
    batch: Annotated[int, typer.Option(min=1, help="The most sequences of a forward.")] = 4,
    threads: Annotated[
        str, typer.Option(help="Numbers of threads to compare, with commas between.")
    ] = "1,2",
) -> None:
    """Compare logits of many rows, sequences and threads, bit for bit, with decoding one by one."""
    from ...checks.bitwise import check_bitwise
    from ...checks.threads import check_threads

    counts = _numbers(threads, "--threads")
    runner = open_runner(model, talks=False, max_sequences=max(4, batch))
    console = Console(soft_wrap=True, highlight=False)
    wrong = 0
    for finding in (
        *check_bitwise(runner, rows=rows, batch=batch),
        *check_threads(model, counts, rows=rows),
    ):
        if finding.same:
            console.print(f"same bits  {finding.what}", markup=False)
            continue
        wrong += 1
        about = f"by up to {finding.difference:.1e}" if finding.difference > 0 else "somewhere"
        console.print(
            f"DIFFERENT  {finding.what}: {about}, first in {finding.where}; "
            f"{finding.flips} rows have another most probable token",
            markup=False,
        )
    if wrong:
        console.print("Speculative text may differ from plain decoding's near a tie.", markup=False)
        raise typer.Exit(1)
    console.print("All logits are the same bits.", markup=False)


def _numbers(text: str, name: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise ValueError(f"{name} takes positive numbers with commas between, not {text!r}")
    return numbers

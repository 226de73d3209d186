"""`kvctl trace`: record speculative rounds for `kvctl bench replay`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from ..open_runner import MODEL_HELP, open_runner


def trace_command(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write, .npz.")],
    questions: Annotated[str, typer.Option("--questions", "-q", help="As for 'kvctl bench spec'.")],
    drafter: Annotated[
        str, typer.Option("--drafter", "-d", help="The larger its trees, the more can be replayed.")
    ] = "lookup:length=8",
    rounds: Annotated[int, typer.Option(min=1, help="Record at least so many, if possible.")] = 100,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", min=1)] = 64,
    temperature: Annotated[float, typer.Option(min=0.01)] = 1.0,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Record drafted trees with the distributions around them, of real generations."""
    from ..bench import read_questions
    from ..bench.tracing import record
    from ..draft import make_drafter
    from .model_drafter import register_drafters

    asked = read_questions(questions)
    if not output.absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no directory for --output {output}")
    register_drafters()
    runner = open_runner(model)
    with Progress(transient=True) as progress:
        task = progress.add_task("recording", total=len(asked))
        trace = record(
            runner,
            asked,
            make_drafter(drafter, runner),
            rounds=rounds,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            advance=lambda: progress.advance(task),
        )
    if len(trace) == 0:
        raise ValueError(f"{drafter} drafted nothing: there is no round to record")
    trace.save(output)
    size = output.stat().st_size / 1e6
    Console(highlight=False).print(f"{len(trace)} rounds in {output}, {size:.1f} MB", markup=False)

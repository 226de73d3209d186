"""`kvctl heads collect`: answers of a model with its hidden states."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ..report import make_console


def collect_command(
    model: Annotated[
        Path,
        typer.Argument(
            help="The target's directory, compiled with --hidden-layers: those that the head reads "
            "and the last one (for SmolLM2-135M 1,14,26,29)."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The directory of the shards.")],
    count: Annotated[int, typer.Option(min=1, help="Prompts.")] = 6000,
    texts: Annotated[
        list[Path] | None,
        typer.Option("--text", help="Text files: passages of them become prompts; repeat it."),
    ] = None,
    free: Annotated[
        float, typer.Option(help="The share of conversations that the model writes whole.")
    ] = 0.25,
    max_new_tokens: Annotated[int, typer.Option(min=2, help="Tokens of an answer.")] = 224,
    temperature: Annotated[float, typer.Option(help="Of the answers.")] = 0.8,
    batch: Annotated[int, typer.Option(min=1, help="Answers that are generated at once.")] = 32,
    minutes: Annotated[
        float | None, typer.Option(help="Begin no further shard after so much time.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of prompts and answers.")] = 0,
) -> None:
    """Have a model answer prompts, and save answers and hidden states for `kvctl heads train`.

    A call that was interrupted goes on where it stopped.
    """
    from ...engine.compiled.runner import ModelRunner
    from ...heads.training.collect import collect
    from ...heads.training.sources import make_prompts

    longest = max_new_tokens + 320
    runner = ModelRunner.load(model, max_sequences=batch, max_total_tokens=batch * longest)
    layers = runner.metadata.get("kvctl", {}).get("hidden_layers")
    if not layers:
        raise ValueError(
            f"{model} gives no hidden states: compile it with --hidden-layers, naming the layers "
            "that the head reads and the last one"
        )
    begin = perf_counter()
    prompts = make_prompts(runner, count, texts=texts or (), free=free, seed=seed)
    columns = (
        TextColumn("answers"),
        BarColumn(),
        TextColumn("{task.completed} of {task.total}, {task.fields[tokens]:,} tokens"),
        TimeElapsedColumn(),
    )
    console = make_console()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("answers", total=len(prompts), tokens=0)
        tokens = collect(
            runner,
            prompts,
            output,
            layers=layers,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            enough=lambda: minutes is not None and perf_counter() - begin > 60 * minutes,
            progress=lambda done, _, some: progress.update(task, completed=done, tokens=some),
        )
    size = sum(file.stat().st_size for file in output.iterdir())
    console.print(f"{output}: {tokens:,} tokens, {size / 1e6:,.0f} MB")

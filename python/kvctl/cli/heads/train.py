"""`kvctl heads train`: a head from collected answers."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ..compile import resolve
from ..demo import DEMO_NAME
from ..report import make_console
from .compile import TARGET_HELP


def train_command(
    collection: Annotated[
        Path, typer.Argument(help="The directory that 'kvctl heads collect' wrote.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The directory to write.")],
    target_model: Annotated[str, typer.Option(help=TARGET_HELP)] = DEMO_NAME,
    kind: Annotated[str, typer.Option(help="eagle3 or medusa.")] = "eagle3",
    vocabulary: Annotated[
        int, typer.Option(min=2, help="Tokens of the draft vocabulary, the most frequent ones.")
    ] = 8192,
    steps: Annotated[
        int, typer.Option(min=1, help="Steps of training-time test, or heads of Medusa.")
    ] = 4,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the answers.")] = 4,
    tokens: Annotated[int, typer.Option(min=16, help="Of a batch, with its padding.")] = 2048,
    rate: Annotated[float, typer.Option(help="The largest learning rate.")] = 1e-3,
    every: Annotated[
        int, typer.Option(min=1, help="Batches between two measurements of held-out answers.")
    ] = 200,
    patience: Annotated[
        int, typer.Option(min=1, help="Measurements without a better one that end the training.")
    ] = 4,
    minutes: Annotated[
        float | None, typer.Option(help="End after so much time, with what is best by then.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of first weights and the order of batches.")] = 0,
) -> None:
    """Train a head on a model's own answers. It needs torch.

    Writes config.json and model.safetensors of the best weights on held-out answers, loss.json and
    loss.svg. A call that was interrupted goes on where it last measured.
    """
    if importlib.util.find_spec("torch") is None:
        raise ModuleNotFoundError("training a head needs torch: pip install 'kvctl[torch]'")

    from ...heads.training.train import Training, train
    from ...models import open_checkpoint

    training = Training(
        kind=kind,
        vocabulary=vocabulary,
        steps=steps,
        epochs=epochs,
        tokens=tokens,
        rate=rate,
        patience=patience,
        every=every,
        seed=seed,
    )
    columns = (
        TextColumn("batches"),
        BarColumn(),
        TextColumn("{task.completed} of {task.total}, loss {task.fields[loss]:.3f}"),
        TimeElapsedColumn(),
    )
    console = make_console()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("batches", total=None, loss=float("nan"))
        record = train(
            collection,
            output,
            target=open_checkpoint(resolve(target_model)),
            training=training,
            minutes=minutes,
            progress=lambda at, of, loss: progress.update(task, completed=at, total=of, loss=loss),
        )
    best = max(record["held_out"], key=lambda one: one["expected_tokens"])
    shares = " / ".join(f"{one:.2f}" for one in best["acceptance"])
    console.print(
        f"{output}: best after {best['batch']} batches; of held-out answers {shares} of the drafts "
        f"are right by depth, {best['expected_tokens']:.2f} tokens of a round as a chain"
    )

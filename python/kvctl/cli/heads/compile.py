"""`kvctl heads compile`: from a published head to a directory that drafts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..compile import resolve
from ..demo import DEMO_NAME
from ..report import make_console

TARGET_HELP = (
    "The model that the head is for, as 'kvctl compile' takes it: its files, not what was compiled "
    f"from them; or '{DEMO_NAME}'."
)


def compile_head_command(
    source: Annotated[
        Path,
        typer.Argument(
            help="A head's directory: config.json and safetensors files of EAGLE, EAGLE-3, Medusa "
            "or vLLM speculators; or a model's with a module for multi-token prediction (MiMo)."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The directory to write.")],
    target_model: Annotated[str, typer.Option(help=TARGET_HELP)] = DEMO_NAME,
    target: Annotated[
        str, typer.Option(help="cpu, or where nvcc is: cuda, or cuda:sm_90 and the like.")
    ] = "cpu",
    dtype: Annotated[
        str | None,
        typer.Option(
            help="cpu: type of the linear layers' weights, float32 (default), bfloat16, int8 or "
            "int4; cuda: type of everything, float16 (default) or float32."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Compile again where the directory is there.")
    ] = False,
) -> None:
    """Compile a head: a library, its parameters, and what it reads of its target."""
    from ...heads import load
    from ...heads.compile import compile_head

    compile_head(
        source,
        output,
        target_model=resolve(target_model),
        target=target,
        dtype=dtype,
        force=force,
    )
    size = sum(file.stat().st_size for file in output.iterdir())
    console = make_console()
    console.print(f"{output}: {size / 1e6:.0f} MB")
    if target == "cpu":
        layers = ",".join(map(str, load(output).hidden_layers))
        console.print(f"It drafts for a model that was compiled with --hidden-layers {layers}")

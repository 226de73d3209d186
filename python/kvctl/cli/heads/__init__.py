"""`kvctl heads`: heads over a model's hidden states, compiled and trained."""

from __future__ import annotations

import typer

from .collect import collect_command
from .compile import compile_head_command
from .train import train_command

app = typer.Typer(
    help="Heads over a model's hidden states that draft for it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.command("compile")(compile_head_command)
app.command("collect")(collect_command)
app.command("train")(train_command)

"""`kvctl heads`: heads over a model's hidden states, compiled and trained."""

from __future__ import annotations

import typer

from .compile import compile_head_command

app = typer.Typer(
    help="Heads over a model's hidden states that draft for it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.command("compile")(compile_head_command)

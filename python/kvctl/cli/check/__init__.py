"""`kvctl check`: what a model or a rule promises, tried."""

from __future__ import annotations

import typer

from .bitwise import bitwise_command
from .kv import kv_command
from .rule import rule_command

app = typer.Typer(
    help="Try what a model or a rule promises.", no_args_is_help=True, rich_markup_mode=None
)
app.command("bitwise")(bitwise_command)
app.command("rule")(rule_command)
app.command("kv")(kv_command)

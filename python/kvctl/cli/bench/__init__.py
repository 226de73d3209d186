"""`kvctl bench`: figures of models, drafters and rules on this machine."""

from __future__ import annotations

import typer

from ..default_group import DefaultGroup
from .compare import compare_command
from .referee import referee_command
from .replay import replay_command
from .results import results_command
from .spec import spec_command
from .steps import steps_command


class _BenchGroup(DefaultGroup):
    default = "steps"


app = typer.Typer(
    cls=_BenchGroup,
    help="Measure. 'kvctl bench MODEL' is 'kvctl bench steps MODEL'.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.command("steps")(steps_command)
app.command("spec")(spec_command)
app.command("compare")(compare_command)
app.command("replay")(replay_command)
app.command("results")(results_command)
app.command("referee")(referee_command)

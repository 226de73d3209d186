"""`kvctl bench`: figures of models, drafters and rules on this machine."""

from __future__ import annotations

import typer

from . import bench_compare, bench_referee, bench_replay, bench_results, bench_spec, bench_steps
from .default_group import DefaultGroup


class _BenchGroup(DefaultGroup):
    default = "steps"


app = typer.Typer(
    cls=_BenchGroup,
    help="Measure. 'kvctl bench MODEL' is 'kvctl bench steps MODEL'.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.command("steps")(bench_steps.steps_command)
app.command("spec")(bench_spec.spec_command)
app.command("compare")(bench_compare.compare_command)
app.command("replay")(bench_replay.replay_command)
app.command("results")(bench_results.results_command)
app.command("referee")(bench_referee.referee_command)

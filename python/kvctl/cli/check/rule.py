"""`kvctl check rule`: a rule of the user's, enumerated."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def rule_command(
    rule: Annotated[str, typer.Argument(help="As module:function; see docs/verification.md.")],
    drawn: Annotated[
        str,
        typer.Option(help="How drafts are drawn: independent, without_replacement, deterministic."),
    ] = "independent",
    models: Annotated[int, typer.Option(min=1, help="Pairs of random models.")] = 5,
) -> None:
    """Enumerate a rule of your own: whether it is lossless, and how much it emits."""
    from ...checks.rule import check_rule, import_rule
    from ...referee import RandomModel

    sys.path.insert(0, str(Path.cwd()))  # as "python -m" does
    found = import_rule(rule)
    console = Console(soft_wrap=True, highlight=False)
    lossless, ran = True, False
    for one in check_rule(found, drawn, [RandomModel(seed) for seed in range(models)]):
        ours = ", ".join(f"{name} {mean:.4f}" for name, mean in one.ours.items())
        if one.verdict is None:
            console.print(f"{one.shape}: it raised {one.error}", markup=False)
            continue
        ran = True
        verdict = "lossless" if one.verdict.lossless else "BIASED"
        console.print(
            f"{one.shape}: {verdict}, {one.verdict.mean_emitted:.4f} tokens/round ({ours})",
            markup=False,
        )
        if one.verdict.counterexample is not None:
            lossless = False
            console.print(f"  {one.verdict.counterexample}", markup=False)
    if not (lossless and ran):
        raise typer.Exit(1)

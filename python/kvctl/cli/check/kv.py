"""`kvctl check kv`: what a coarser type of K and V changes."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..open_runner import MODEL_HELP, open_runner

_QUESTION = "Explain how a bicycle stays upright when it moves."


def kv_command(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    kv_dtypes: Annotated[
        list[str] | None,
        typer.Option("--kv-dtype", help="By default all types that can be tried."),
    ] = None,
    questions: Annotated[
        str | None, typer.Option("--questions", "-q", help="As for 'kvctl bench spec'.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Questions to take.")] = 6,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", min=2)] = 32,
    temperature: Annotated[float, typer.Option(min=0.01, help="Of the acceptance.")] = 1.0,
) -> None:
    """Show what coarser K and V change: logits, choices, and the acceptance of drafts."""
    from ...bench import Question, read_questions
    from ...bench.conversation import encode_turn
    from ...checks.kv_precision import KV_DTYPES, check_kv

    names = kv_dtypes or list(KV_DTYPES)
    asked = [Question(0, "", (_QUESTION,))]
    if questions is not None:
        asked = read_questions(questions, limit=limit)
    runner = open_runner(model)
    prompts = [encode_turn(runner.text, question, []) for question in asked]
    table = Table(title="K and V rounded, beside the cache's own float32")
    for i, column in enumerate(("K and V", "logit error", "largest", "same choice", "acceptance")):
        table.add_column(column, justify="left" if i == 0 else "right")
    for name in names:
        found = check_kv(runner, prompts, name, new_tokens=max_new_tokens, temperature=temperature)
        errors = (f"{found.mean_error:.2e}", f"{found.max_error:.2e}")
        table.add_row(name, *errors, f"{found.same_choice:.1%}", f"{found.acceptance:.4f}")
    Console(highlight=False).print(table)

"""`kvctl check kv`: what a coarser type of K and V changes."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ...open_runner import MODEL_HELP, open_runner

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
    """Show what coarser K and V change: logits, choices, and the acceptance of drafts.

    The same model runs on a cache of that type if there is one. For other types K and V of a
    float32 cache are rounded after each forward.
    """
    from ...bench import Question, read_questions
    from ...bench.conversation import encode_turn
    from ...checks.kv_precision import CACHE_DTYPES, KV_DTYPES, check_kv

    names = kv_dtypes or list(KV_DTYPES)
    asked = [Question(0, "", (_QUESTION,))]
    if questions is not None:
        asked = read_questions(questions, limit=limit)
    wrong = next((name for name in names if name not in KV_DTYPES), None)
    if wrong is not None:
        raise ValueError(f"--kv-dtype is one of {', '.join(KV_DTYPES)}; got {wrong!r}")
    runner = open_runner(model, kv_dtype="float32")
    prompts = [encode_turn(runner.text, question, []) for question in asked]
    table = Table(title="coarser K and V, beside float32")
    columns = ("K and V", "how", "logit error", "largest", "same choice", "acceptance")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < 2 else "right")
    for name in names:
        found = check_kv(
            runner,
            prompts,
            name,
            coarser=open_runner(model, kv_dtype=name) if name in CACHE_DTYPES else None,
            new_tokens=max_new_tokens,
            temperature=temperature,
        )
        how = "in cache" if found.in_cache else "rounded"
        errors = (f"{found.mean_error:.2e}", f"{found.max_error:.2e}")
        table.add_row(name, how, *errors, f"{found.same_choice:.1%}", f"{found.acceptance:.4f}")
    Console(highlight=False).print(table)

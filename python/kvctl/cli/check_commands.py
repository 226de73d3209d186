"""`kvctl check`: what a model or a rule promises, tried."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .open_runner import MODEL_HELP, open_runner

_QUESTION = "Explain how a bicycle stays upright when it moves."

app = typer.Typer(
    help="Try what a model or a rule promises.", no_args_is_help=True, rich_markup_mode=None
)


@app.command("bitwise")
def bitwise_command(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    rows: Annotated[int, typer.Option(min=2, help="The most rows of a forward.")] = 16,
    batch: Annotated[int, typer.Option(min=1, help="The most sequences of a forward.")] = 4,
    threads: Annotated[
        str, typer.Option(help="Numbers of threads to compare, with commas between.")
    ] = "1,2",
) -> None:
    """Compare logits of many rows, sequences and threads, bit for bit, with decoding one by one."""
    from ..checks.bitwise import check_bitwise, check_threads

    counts = _numbers(threads, "--threads")
    runner = open_runner(model, talks=False, max_sequences=max(4, batch))
    console = Console(soft_wrap=True, highlight=False)
    wrong = 0
    for finding in (
        *check_bitwise(runner, rows=rows, batch=batch),
        *check_threads(model, counts, rows=rows),
    ):
        if finding.same:
            console.print(f"same bits  {finding.what}", markup=False)
            continue
        wrong += 1
        about = f"by up to {finding.difference:.1e}" if finding.difference > 0 else "somewhere"
        console.print(
            f"DIFFERENT  {finding.what}: {about}, first in {finding.where}; "
            f"{finding.flips} rows have another most probable token",
            markup=False,
        )
    if wrong:
        console.print("Speculative text may differ from plain decoding's near a tie.", markup=False)
        raise typer.Exit(1)
    console.print("All logits are the same bits.", markup=False)


@app.command("rule")
def rule_command(
    rule: Annotated[str, typer.Argument(help="As module:function; see docs/verification.md.")],
    drawn: Annotated[
        str,
        typer.Option(help="How drafts are drawn: independent, without_replacement, deterministic."),
    ] = "independent",
    models: Annotated[int, typer.Option(min=1, help="Pairs of random models.")] = 5,
) -> None:
    """Enumerate a rule of your own: whether it is lossless, and how much it emits."""
    from ..checks.rule import check_rule, import_rule
    from ..referee import RandomModel

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


@app.command("kv")
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
    from ..bench import Question, read_questions
    from ..bench.conversation import encode_turn
    from ..checks.kv_precision import KV_DTYPES, check_kv

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


def _numbers(text: str, name: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise ValueError(f"{name} takes positive numbers with commas between, not {text!r}")
    return numbers

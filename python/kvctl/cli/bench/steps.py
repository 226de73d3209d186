"""`kvctl bench steps`: how fast a model runs here, and what speculation gains."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..._ffi.replace_file import replacing
from ...open_runner import KV_DTYPE_HELP, MODEL_HELP, open_runner

if TYPE_CHECKING:
    from .measure import Speedup

# One prompt whose answer copies, and one whose answer does not.
_PROMPTS = {
    "copy": "Repeat the following paragraph exactly:\n\nA paged cache keeps the keys and values of "
    "a sequence in pages of equal size. Each sequence owns a list of page numbers, and a page may "
    "belong to several sequences at once. When a sequence grows, it takes a free page from the "
    "pool; when it is rolled back, it returns the pages that it no longer needs.",
    "open": "Tell a short story about a lighthouse keeper who finds a message in a bottle.",
}


def steps_command(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    rows: Annotated[
        str, typer.Option(help="How many tokens to verify at once, with commas between.")
    ] = "1,2,4,8,16",
    context: Annotated[int, typer.Option(min=16, help="Tokens in the cache for steps.")] = 128,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", min=2)] = 128,
    repeat: Annotated[int, typer.Option(min=1, help="Generations of each kind.")] = 3,
    prompt_files: Annotated[
        list[Path] | None,
        typer.Option("--prompt-file", "-f", help="Prompts instead of the built-in two."),
    ] = None,
    kv_dtype: Annotated[str | None, typer.Option(help=KV_DTYPE_HELP)] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the measurements here; '-' is stdout.")
    ] = None,
) -> None:
    """Time decode, verification of k tokens, and speculative beside plain generation."""
    from ...bench.machine_state import describe_machine
    from ...draft import LookupDrafter
    from .measure import measure_speedup, measure_steps, to_json

    sizes = _parse_rows(rows)
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no directory for --json {json_file}")
    prompts = _PROMPTS
    if prompt_files:
        stems = Counter(file.stem for file in prompt_files)
        prompts = {
            file.stem if stems[file.stem] == 1 else str(file): file.read_text("utf-8").strip()
            for file in prompt_files
        }
    console = Console(stderr=str(json_file) == "-", soft_wrap=True, highlight=False)
    runner = open_runner(model, kv_dtype=kv_dtype)
    text = runner.text
    drafter = LookupDrafter()
    speedups = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("measuring", total=1 + len(prompts))
        steps = measure_steps(runner, rows=sizes, context=context, repeat=3 * repeat)
        progress.advance(task)
        for name, prompt in prompts.items():
            tokens = text.encode_chat(prompt) if text.has_template else text.encode(prompt)
            speedups.append(
                measure_speedup(
                    runner,
                    name,
                    tokens,
                    drafter,
                    new_tokens=max_new_tokens,
                    stop_check=text.stop_check,
                    repeat=repeat,
                )
            )
            progress.advance(task)

    table = Table(title=f"steps behind {context} tokens")
    for column in ("", "ms", "least", "most", "of a decode step"):
        table.add_column(column, justify="right")
    rows_of = {f"prefill {context}": steps.prefill, "decode 1": steps.decode}
    rows_of |= {f"verify {n}": timing for n, timing in steps.verify.items()}
    for label, timing in rows_of.items():
        values = (f"{1e3 * s:.1f}" for s in (timing.median, timing.least, timing.most))
        table.add_row(label, *values, f"{timing.median / steps.decode.median:.2f}x")
    console.print(table)

    table = Table(title="generation, tokens per second")
    for column in ("prompt", "tokens", "plain", "speculative", "ratio", "accepted", "same"):
        table.add_column(column, justify="right")
    for one in speedups:
        table.add_row(*speedup_cells(one))
    console.print(table)

    if json_file is not None:
        result = {"model": model, **describe_machine(), **to_json(steps, speedups)}
        content = json.dumps(result, indent=1)
        if str(json_file) == "-":
            typer.echo(content)
        elif json_file.exists() and not json_file.is_file():
            json_file.write_text(content + "\n")  # a pipe, say
        else:
            with replacing(json_file) as unfinished:
                unfinished.write_text(content + "\n")


def speedup_cells(one: Speedup) -> list[str]:
    """Return the cells of a prompt's row; a dash where a text of one token has no rate."""
    cells = ["-", "-"]
    if one.new_tokens > 1:
        cells = [f"{(one.new_tokens - 1) / t.median:.1f}" for t in (one.plain, one.speculative)]
    cells.append("-" if isnan(one.ratio) else f"{one.ratio:.2f}x")
    length = one.mean_acceptance_length
    cells.append("-" if isnan(length) else f"{length:.1f}")
    return [one.name, str(one.new_tokens), *cells, "yes" if one.same else "NO"]


def _parse_rows(text: str) -> Sequence[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise ValueError(f"--rows takes positive numbers with commas between, not '{text}'")
    return sizes

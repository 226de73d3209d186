"""`kvctl generate`: continue a prompt, plainly or speculatively, and tell how it went."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..open_runner import KV_DTYPE_HELP, MODEL_HELP, WORKERS_HELP, open_runner
from .report import make_console, print_comparison, print_statistics
from .text_grammar import read_grammar

if TYPE_CHECKING:
    from rich.console import Console

    from ..draft import Drafter
    from ..engine.generation import Generation
    from ..engine.protocol import Runner
    from ..verification import Sampling

_WARM_UP_TOKENS = 4


def generate_command(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt; by default it comes from a file or stdin.")
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option("--prompt-file", "-f", help="Read the prompt here; '-' is stdin.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", min=1)] = 256,
    draft: Annotated[
        str, typer.Option(help="lookup: copy from the text so far; none: decode plainly.")
    ] = "lookup",
    draft_length: Annotated[
        int | None,
        typer.Option(min=1, help="Always draft this far; by default the length adapts."),
    ] = None,
    branches: Annotated[
        bool, typer.Option("--tree/--chain", help="Draft several continuations, or the best.")
    ] = True,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="0 is all.")] = 0,
    seed: Annotated[int, typer.Option()] = 0,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as it is: no chat template.")
    ] = False,
    system: Annotated[
        str | None, typer.Option(help="Instead of the template's system message; may be empty.")
    ] = None,
    literal: Annotated[
        bool,
        typer.Option(
            "--literal", help="Take '<|im_end|>' and the like in the prompt as plain text."
        ),
    ] = False,
    json_schema: Annotated[
        Path | None,
        typer.Option(help="The text follows this JSON schema. Needs xgrammar: kvctl[grammar]."),
    ] = None,
    grammar: Annotated[
        Path | None,
        typer.Option(help="The text follows this grammar, in xgrammar's EBNF."),
    ] = None,
    kv_dtype: Annotated[str | None, typer.Option(help=KV_DTYPE_HELP)] = None,
    workers: Annotated[int, typer.Option(min=1, help=WORKERS_HELP)] = 1,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Generate plainly, then speculatively; show both."),
    ] = False,
) -> None:
    """Continue a prompt; print tokens as they come, then speed, acceptance and times."""
    from ..draft import LookupDrafter
    from ..verification import Sampling

    if draft not in ("lookup", "none"):
        raise ValueError(f"--draft is lookup or none, not {draft}")
    message = read_prompt(prompt, prompt_file)
    runner = open_runner(model, workers=workers, kv_dtype=kv_dtype)
    text = runner.text
    special: Literal["literal", "parse"] = "literal" if literal else "parse"
    is_chat = text.has_template and not raw
    if system is not None and not is_chat:
        raise ValueError("--system needs a chat template; --raw, or this model, has none")
    if not is_chat:
        tokens = text.encode(message, special=special)
    else:
        tokens = text.encode_chat(message, system=system, special=special)
    sampling = (
        Sampling(temperature=temperature, top_p=top_p, top_k=top_k) if temperature > 0 else None
    )
    drafter = LookupDrafter(length=draft_length, branches=branches)
    matcher = read_grammar(runner, json_schema, grammar)
    console = make_console()
    session = _Session(runner, tokens, max_new_tokens, sampling, seed, matcher, console)
    if not (is_chat or raw):
        console.print("[dim]no chat template: the prompt is continued as it is (--raw)[/]")
    if not compare:
        generation = session.run(drafter if draft == "lookup" else None)
        print_statistics(console, generation.statistics)
        return
    session.warm_up()
    console.print("[bold]plain[/]")
    first = session.run(None)
    print_statistics(console, first.statistics)
    console.print("\n[bold]speculative[/]")
    second = session.run(drafter)
    print_statistics(console, second.statistics)
    if not print_comparison(console, runner, tokens, first, second, greedy=sampling is None):
        raise typer.Exit(1)


def read_prompt(prompt: str | None, prompt_file: Path | None) -> str:
    """Return the prompt from wherever it is.

    Raises
    ------
    ValueError
        If it is given twice, or not at all, or is empty, or no text.
    """
    if prompt is not None and prompt_file is not None:
        raise ValueError("give the prompt either as an argument or as a file")
    try:
        if prompt_file is not None and str(prompt_file) != "-":
            prompt = prompt_file.read_text(encoding="utf-8")
        elif prompt is None:
            if sys.stdin is None or (prompt_file is None and sys.stdin.isatty()):
                raise ValueError(
                    "give a prompt: as an argument, with --prompt-file, or through stdin"
                )
            prompt = sys.stdin.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"{prompt_file or 'stdin'} is no text in UTF-8: {error}") from error
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise ValueError("the prompt on the command line is no text in UTF-8") from None
    if not prompt.strip():
        raise ValueError("the prompt is empty")
    return prompt.removesuffix("\n")


class _Session:
    """One prompt on one model, generated from once or twice."""

    def __init__(
        self,
        runner: Runner,
        tokens: list[int],
        max_new_tokens: int,
        sampling: Sampling | None,
        seed: int,
        grammar: Callable[[], Any] | None,
        console: Console,
    ) -> None:
        self._runner = runner
        self._text = runner.text
        self._tokens = tokens
        self._max_new_tokens = max_new_tokens
        self._sampling = sampling
        self._seed = seed
        self._grammar = grammar
        self._console = console

    def warm_up(self) -> None:
        """Generate a few tokens, so that the first timing has no one-time costs."""
        from .. import generate

        generate(self._runner, self._tokens, max_new_tokens=_WARM_UP_TOKENS)

    def run(self, drafter: Drafter | None) -> Generation:
        """Generate, and print the text as it comes."""
        from .. import generate

        stream = self._text.stream()

        def show(token: int) -> bool:
            self._write(stream.push(token))
            return stream.stopped_by is not None

        generation = generate(
            self._runner,
            self._tokens,
            max_new_tokens=self._max_new_tokens,
            drafter=drafter,
            sampling=self._sampling,
            seed=self._seed,
            grammar=self._grammar,
            stop=self._text.stop_tokens,
            stop_when=show,
        )
        self._write(stream.finish() + "\n")
        return generation

    def _write(self, text: str) -> None:
        # Not through rich: the text is the model's, and may look like markup.
        self._console.file.write(text)
        self._console.file.flush()

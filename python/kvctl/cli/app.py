"""The commands, and how their errors are printed."""

from __future__ import annotations

import io
import os
import shutil
import sys
import textwrap
from typing import Annotated

import typer

from . import bench, check, compile, doctor, generate, heads, trace

app = typer.Typer(
    help="Control of the KV cache for speculative decoding on TVM and MLC-LLM.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Plain help breaks lines between words; the tables of Rich cut the options' names.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(doctor.doctor)
app.command("compile")(compile.compile_command)
app.command("generate")(generate.generate_command)
app.command("trace")(trace.trace_command)
app.add_typer(bench.app, name="bench")
app.add_typer(check.app, name="check")
app.add_typer(heads.app, name="heads")


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    from .. import __version__

    print(f"kvctl {__version__}")
    raise typer.Exit


@app.callback()
def _callback(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Control of the KV cache for speculative decoding on TVM and MLC-LLM."""


def main() -> None:
    """Run a command; an error is printed as a sentence, not as a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A model's text goes on where the terminal's encoding lacks a character.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except Exception as error:
        if os.environ.get("KVCTL_TRACEBACK"):
            raise
        # str() of a KeyError puts its message in quotes.
        message = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
        sys.exit(as_printed(f"kvctl: {message or type(error).__name__}"))


def as_printed(message: str) -> str:
    """Return a message as the terminal takes it.

    Its lines break between words where stderr is a terminal. Bytes of the command line that are no
    UTF-8 are shown as escapes.
    """
    message = message.encode("utf-8", "backslashreplace").decode()
    if sys.stderr is None or not sys.stderr.isatty():
        return message
    width = shutil.get_terminal_size().columns
    lines = (
        textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)
        for line in message.splitlines()
    )
    return "\n".join(lines)

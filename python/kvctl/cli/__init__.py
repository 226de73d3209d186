"""The `kvctl` command line."""

from __future__ import annotations

import os
import sys

import typer

from . import bench, compile, doctor, generate

app = typer.Typer(
    help="Control of the KV cache for speculative decoding on TVM and MLC-LLM.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(doctor.doctor)
app.command("compile")(compile.compile_command)
app.command("generate")(generate.generate_command)
app.command("bench")(bench.bench_command)


@app.callback()
def _callback() -> None:
    """Control of the KV cache for speculative decoding on TVM and MLC-LLM."""


def main() -> None:
    """Run a command; an error is printed as one line, not as a traceback."""
    try:
        app()
    except Exception as error:
        if os.environ.get("KVCTL_TRACEBACK"):
            raise
        # str() of a KeyError puts its message in quotes.
        message = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
        sys.exit(f"kvctl: {message or type(error).__name__}")

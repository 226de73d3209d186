"""The command line within this process: a new one imports for a second and more."""

import contextlib
import io
import sys
from dataclasses import dataclass
from unittest import mock

from kvctl.cli import main


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def run(*arguments, text=""):
    """Run `kvctl` with arguments and stdin; return what a shell would see."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    argv = mock.patch.object(sys, "argv", ["kvctl", *map(str, arguments)])
    stdin = mock.patch.object(sys, "stdin", io.StringIO(text))
    width = mock.patch.dict("os.environ", {"COLUMNS": "200"})
    with argv, stdin, width, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
            if isinstance(code, str):  # the interpreter would print it
                err.write(code + "\n")
                code = 1
    return Done(code, out.getvalue(), err.getvalue())

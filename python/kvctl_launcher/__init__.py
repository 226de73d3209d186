"""The first step of the `kvctl` command.

It is outside the package because `kvctl doctor` must run where `import kvctl` fails: that failure
is what it explains. It needs nothing but Python.
"""

import importlib.util
import os
import sys


def main() -> None:
    """Run the command line; let the doctor in without loading kvctl's libraries.

    Ctrl-C, a full disk and a reader of the output that went away end it with a status and without
    a traceback.
    """
    try:
        try:
            _run()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except KeyboardInterrupt:
        _forget_output()
        sys.exit(130)  # as a shell says of a program that ended on Ctrl-C
    except BrokenPipeError:
        _forget_output()
        sys.exit(1)  # the reader has what it wanted
    except OSError as error:
        _forget_output()
        sys.exit(f"kvctl: {error}")


def _forget_output() -> None:
    """Drop what stdout still holds: Python would write it when it ends, and fail again."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run() -> None:
    if sys.argv[1:] == ["doctor"]:
        spec = importlib.util.find_spec("kvctl")
        if spec is None:
            sys.exit("kvctl: this Python has the command but not the package; install kvctl again")
        # The package without what its __init__ does: only modules that need no library can be used.
        sys.modules["kvctl"] = importlib.util.module_from_spec(spec)
        from kvctl.cli.doctor import doctor

        doctor()
        return
    try:
        import kvctl  # noqa: F401
        from kvctl.cli.app import main as run
    except Exception as error:
        sys.exit(f"kvctl cannot be loaded: {error}\nRun 'kvctl doctor' to see what is wrong.")
    run()

"""The first step of the `kvctl` command.

It is outside the package because `kvctl doctor` must run where `import kvctl` fails: that failure
is what it explains. It needs nothing but Python.
"""

import importlib.util
import sys


def main() -> None:
    """Run the command line; let the doctor in without loading kvctl's libraries."""
    try:
        _run()
    except KeyboardInterrupt:
        sys.exit(130)  # as a shell says of a program that ended on Ctrl-C


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

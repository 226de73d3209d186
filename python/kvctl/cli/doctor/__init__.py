"""`kvctl doctor`: check what kvctl needs, and say what to do about what is missing."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .check import Check, Status
from .machine import machine_checks
from .software import probe, software_checks

if TYPE_CHECKING:
    from rich.console import Console

_STYLE = {
    Status.OK: "green",
    Status.NOTE: "cyan",
    Status.WARN: "yellow",
    Status.FAIL: "bold red",
}


def doctor() -> None:
    """Check the installation and the machine; say what to do about each failure."""
    probed = probe()
    spec = importlib.util.find_spec("tvm")
    places = None if spec is None else spec.submodule_search_locations
    tvm = Path(next(iter(places))) if places else None
    checks = [*software_checks(probed), *machine_checks(probed, tvm)]
    try:
        from rich.console import Console
    except ImportError:
        report_plainly(checks)
    else:
        is_terminal = sys.stdout is not None and sys.stdout.isatty()
        report(checks, Console(soft_wrap=not is_terminal, highlight=False))
    if any(check.status is Status.FAIL for check in checks):
        sys.exit(1)


def report_plainly(checks: Sequence[Check]) -> None:
    """Print what :func:`report` prints, where the package `rich` is missing."""
    for check in checks:
        print(f"{check.status.value:4}  {check.name:14}  {check.found}")
        if check.advice:
            print(f"{'':22}-> {check.advice}")
    failures = sum(check.status is Status.FAIL for check in checks)
    print(f"\n{failures} of {len(checks)} checks failed." if failures else "\nkvctl works here.")


def report(checks: Sequence[Check], console: Console) -> None:
    """Print a line for each check, with what to do about it below."""
    from rich.markup import escape

    width = max((len(check.name) for check in checks), default=0)
    for check in checks:
        style = _STYLE[check.status]
        name = escape(f"{check.name:{width}}")
        console.print(f"[{style}]{check.status.value:4}[/]  {name}  {escape(check.found)}")
        if check.advice:
            console.print(f"{'':{width + 8}}[{style}]->[/] {escape(check.advice)}")
    failures = sum(check.status is Status.FAIL for check in checks)
    if failures:
        console.print(f"\n[bold red]{failures} of {len(checks)} checks failed.[/]")
    else:
        console.print("\n[green]kvctl works here.[/]")

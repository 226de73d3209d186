"""`kvctl bench results`: a page of several measurements, and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def results_command(
    summaries: Annotated[
        list[Path], typer.Argument(help="Files summary.json of 'kvctl bench spec'.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page, as Markdown.")],
    picture: Annotated[
        Path | None, typer.Option(help="A PNG of the speed-ups; it needs matplotlib.")
    ] = None,
) -> None:
    """Write a page of several measurements: tables, and where speculation loses."""
    from ..._ffi.replace_file import replacing
    from ...bench.report.results_page import Measured, results_page, speedup_picture

    measured = [Measured(path) for path in summaries]
    link = ""
    if picture is not None:
        image = speedup_picture(measured)
        picture.parent.mkdir(parents=True, exist_ok=True)
        with replacing(picture) as unfinished:
            unfinished.write_bytes(image)
        common = output.absolute().parent
        path = picture.absolute()
        link = path.relative_to(common).as_posix() if path.is_relative_to(common) else str(path)
    with replacing(output) as unfinished:
        unfinished.write_text(results_page(measured, link), encoding="utf-8")

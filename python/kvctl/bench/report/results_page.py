"""The page of several measurements: docs/results.md, and the picture of the README."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..._ffi.untrusted import parse_json_object, read_text
from ..figures import OVERALL, Figures, figures_from_json
from ..result import MAX_BYTES, Result
from ..settings import describe
from .markdown import to_markdown

_INTRODUCTION = """# Measured: drafters beside plain decoding

`make results` makes this page. {questions} Plain decoding and all drafters answer each question in
turns, and each drafter lives through all questions. The figures as JSON are in
`benchmarks/results/speculation`, and `docs/benchmarks.md` says how they are measured and what they
mean.
"""


class Measured:
    """A summary.json: a result without its answers, and its figures.

    Attributes
    ----------
    result : Result
    figures : list of Figures
    """

    def __init__(self, path: str | Path) -> None:
        self.result = Result.load(path)
        content = parse_json_object(read_text(Path(path), max_bytes=MAX_BYTES), str(path))
        self.figures = figures_from_json(content.get("figures", []), self.result)
        if not self.figures:
            raise ValueError(f"{path} has no figures")

    @property
    def name(self) -> str:
        """How the texts were drawn: "greedy", or the temperature."""
        return describe(self.result.settings).split(",")[0]

    def drafted(self, category: str = OVERALL) -> list[Figures]:
        """Return the figures of a category, plain decoding's left out."""
        return [
            one
            for one in self.figures
            if one.category == category
            and self.result.configurations[one.configuration].drafter is not None
        ]


def results_page(measured: Sequence[Measured], picture: str = "") -> str:
    """Return the page; `picture` is the path of the picture as the page sees it."""
    first = measured[0].result
    questions = (
        f"{Path(first.model).name}, {first.questions['count']} questions of "
        f"`{first.questions['name']}`."
    )
    lines = [_INTRODUCTION.format(questions=questions)]
    if picture:
        lines.append(f"![Speed-up by drafter]({picture})\n")
    for one in measured:
        title = one.name[0].upper() + one.name[1:]
        lines.append(to_markdown(one.result, level=2, title=title, figures=one.figures))
        lines.append("### Where speculation loses\n")
        lines.append("\n".join(_losses(one)) + "\n")
    return "\n".join(lines)


def _losses(measured: Measured) -> Iterator[str]:
    found = False
    for one in measured.figures:
        configuration = measured.result.configurations[one.configuration]
        if configuration.drafter is None or not one.speedup.value < 1:
            continue
        found = True
        value, low, high = one.speedup
        ends, sure = f" [{low:.2f}, {high:.2f}]", ""
        if low != low:
            ends, sure = "", "; too few questions for an interval"
        elif high >= 1:
            sure = "; the interval does not exclude a gain"
        where = "all questions together" if one.category == OVERALL else one.category
        yield f"- {measured.result.names[one.configuration]}, {where}: {value:.2f}x{ends}{sure}."
    if not found:
        yield "Nowhere among these categories."


def speedup_picture(measured: Sequence[Measured]) -> bytes:
    """Return a PNG: the speed-up of each drafter with its interval, a row of bars for each result.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    names = list(
        dict.fromkeys(
            one.result.names[figures.configuration] for one in measured for figures in one.drafted()
        )
    )
    height = 0.8 / len(measured)
    figure = Figure(figsize=(7.5, 1.6 + 0.6 * len(names)), layout="constrained")
    ax = figure.subplots()
    for i, one in enumerate(measured):
        for figures in one.drafted():
            name = one.result.names[figures.configuration]
            place = names.index(name) + (i - (len(measured) - 1) / 2) * height
            value, low, high = figures.speedup
            ax.barh(
                place,
                value,
                height=0.9 * height,
                color=f"C{i}",
                hatch=("", "//", "xx")[i % 3],
                edgecolor="white",
                label=one.name if figures is one.drafted()[0] else None,
            )
            if low == low:
                ax.plot([low, high], [place, place], color="black", linewidth=1.5)
    ax.axvline(1.0, color="black", linewidth=1)
    # A name with options takes a line for each, or it leaves no room for the bars.
    labels = [name.replace(":", ":\n").replace(",", ",\n").replace(" / ", "\n") for name in names]
    ax.set_yticks(range(len(names)), labels, fontsize="small")
    ax.invert_yaxis()
    ax.set_xlabel("speed-up over plain decoding, prefill included; 95 % intervals by question")
    figure.legend(loc="outside upper center", ncols=len(measured), fontsize="small")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
    return file.getvalue()

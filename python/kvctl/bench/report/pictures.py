"""The pictures of a report, as SVG that stands in a page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from ...drawing.rate_plot import draw_rates
from ...tree import TokenTree
from ..figures import Figures
from ..result import Answer, Result
from .tables import Content

_MARKERS = "osD^vXP*"
_SIZE = (8.8, 4.0)
_LONGEST_LABEL = 40
# SVG with text as text: small, and found by a browser's search.
_STYLE = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}


def pictures_of(content: Content) -> dict[str, str]:
    """Return title and SVG of each picture that the result has data for.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    drawers: dict[str, Callable[[Content, Any], bool]] = {
        "Acceptance by depth, if reached": draw_acceptance,
        "Speed-up against tokens per round, by question": draw_speedup,
        "Tokens per second against draft depth": draw_depth,
        "Where the time goes": draw_times,
    }
    return {
        title: svg
        for title, draw in drawers.items()
        if (svg := _drawn(title, draw, content, _SIZE))
    }


def tree_picture(result: Result, answer: Answer, number: int) -> str:
    """Return the SVG of a round's tree, its accepted nodes in bold."""
    tokens, parents, accepted = answer.trees[number]
    tree = TokenTree(tokens, parents)

    def draw(_: None, ax: Any) -> bool:
        tree.plot(
            decode=lambda part: "".join(result.tokens[str(t)] for t in part),
            accepted=accepted,
            ax=ax,
        )
        return True

    leaves = len(tokens) - len(set(parents) - {-1})
    size = (min(3.0 + 1.3 * float(tree.depths.max()), 14.0), 0.8 + 0.3 * leaves)
    return _drawn(f"tree {answer.configuration} {number}", draw, None, size)


def _drawn(title: str, draw: Callable[[Any, Any], bool], content: Any, size: Any) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    # The salt keeps the ids of several pictures in one page apart, and the same in every run.
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": title}):
        figure = Figure(figsize=size, layout="constrained")
        ax = figure.subplots()
        if not draw(content, ax):
            return ""
        if ax.get_legend() is not None:  # beside the axes it covers nothing
            ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize="small")
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return _own_ids(text[text.index("<svg") :], re.sub(r"\W+", "-", title.lower()))


def _own_ids(svg: str, prefix: str) -> str:
    """Return a picture whose ids are no other picture's in the page."""
    for before in ('id="', 'href="#', "url(#"):
        svg = svg.replace(before, f"{before}{prefix}-")
    return svg


def _label(content: Content, figures: Figures) -> str:
    """Return a configuration's name, cut where a legend has no room."""
    name = content.name(figures)
    return name if len(name) <= _LONGEST_LABEL else name[: _LONGEST_LABEL - 3] + "..."


def draw_acceptance(content: Content, ax: Any) -> bool:
    """Draw a curve for each configuration that drafted."""
    drafted = [one for one in content.overall if any(one.reached)]
    for one in drafted:
        draw_rates(
            np.array(one.rates),
            np.array(one.reached),
            figure=f"{one.acceptance_length:.2f} tokens",
            label=_label(content, one),
            ax=ax,
        )
    return bool(drafted)


def draw_speedup(content: Content, ax: Any) -> bool:
    """Draw a point for each question and configuration."""
    result = content.result
    drawn = 0
    for number, configuration in enumerate(result.configurations):
        if configuration.drafter is None:
            continue
        plain = result.configurations.index(configuration.plain)
        points = _points(result.of(number), result.of(plain))
        xs, ys = [x for x, _ in points], [y for _, y in points]
        marker = _MARKERS[drawn % len(_MARKERS)]
        color = f"C{drawn % 10}"
        face = "none" if drawn % 2 else color
        ax.scatter(
            xs,
            ys,
            s=24,
            marker=marker,
            label=_label(content, content.overall[number]),
            alpha=0.8,
            facecolors=face,
            edgecolors=color,
        )
        drawn += 1
    if not drawn:
        return False
    end = ax.get_xlim()[1]
    ax.plot(
        [1, end], [1, end], color="0.6", linewidth=1, linestyle=":", label="if drafts cost nothing"
    )
    ax.axhline(1.0, color="0.3", linewidth=1)
    ax.set(xlabel="tokens per round", ylabel="speed-up, prefill included")
    ax.legend()
    return True


def _points(drafted: list[Answer], plain: list[Answer]) -> list[tuple[float, float]]:
    points = []
    for id in dict.fromkeys(one.question_id for one in drafted):
        own = [one for one in drafted if one.question_id == id]
        base = [one for one in plain if one.question_id == id]
        rounds = sum(len(one.rounds) for one in own)
        if rounds:
            emitted = sum(sum(part.emitted for part in one.rounds) for one in own)
            points.append((emitted / rounds, _rate(own) / _rate(base)))
    return points


def _rate(answers: list[Answer]) -> float:
    return sum(len(one.tokens) for one in answers) / sum(one.least_seconds for one in answers)


def draw_depth(content: Content, ax: Any) -> bool:
    """Draw tokens per second over the mean depth of drafts; lengths of one drafter are joined."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for one in content.overall:
        drafter = content.result.configurations[one.configuration].drafter
        if drafter is not None and one.mean_depth == one.mean_depth:
            curve = re.sub(r"\b(\w*length)=\d+", r"\1=...", _label(content, one))
            curves.setdefault(curve, []).append((one.mean_depth, one.tokens_per_second))
    for i, (name, points) in enumerate(curves.items()):
        xs, ys = zip(*sorted(points), strict=True)
        ax.plot(xs, ys, marker=_MARKERS[i % len(_MARKERS)], label=name)
    for one in content.overall:
        if content.result.configurations[one.configuration].drafter is None:
            ax.axhline(
                one.tokens_per_second, color="0.3", linestyle="--", label=_label(content, one)
            )
    ax.set(xlabel="mean depth of the drafts", ylabel="tokens/s, prefill included", ylim=(0, None))
    ax.set_xlim(0, None)
    ax.legend()
    return bool(curves)


def draw_times(content: Content, ax: Any) -> bool:
    """Draw a bar for each configuration: milliseconds of an emitted token by part."""
    names = [_label(content, one) for one in content.overall]
    places, left = range(len(names)), np.zeros(len(names))
    hatches = ("", "//", "..", "xx", "\\\\", "++", "oo")
    for i, part in enumerate(content.overall[0].seconds):
        spent = [1e3 * one.seconds[part] / one.tokens for one in content.overall]
        if any(spent):
            ax.barh(places, spent, left=left, label=part, hatch=hatches[i], edgecolor="white")
            left += spent
    ax.invert_yaxis()
    ax.set(xlabel="milliseconds of a token")
    ax.set_yticks(places, names)
    ax.legend()
    return True

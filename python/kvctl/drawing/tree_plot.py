"""A token tree as a picture: depth from left to right, siblings in draw order."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from .axes import axes_or_new
from .tree_text import Decode, children_of, node_label, text_width

# In a monospaced font a character is this wide, in inches for each point of its size.
_INCHES_PER_POINT = 0.602 / 72
_FONT, _SMALLEST_FONT = 9.0, 3.0
_LINE = 1.9  # of a leaf's row, in font sizes
_LONGEST_LABEL = 24  # characters; longer ones are cut
_BETWEEN = 4  # columns of characters between a node and its children
_MOST_INCHES = 40.0


def draw_tree(
    tokens: Sequence[int],
    parents: Sequence[int],
    depths: Sequence[int],
    *,
    decode: Decode | None,
    accepted: Collection[int],
    ax: Any,
) -> Any:
    """Draw a tree; see `TokenTree.plot`."""
    labels = [_cut(node_label(node, token, decode)) for node, token in enumerate(tokens)]
    labels = _drawable(labels)
    lefts, width = _columns(labels, depths)
    heights, leaves = _heights(parents)
    needed = (width * _INCHES_PER_POINT, (leaves + 0.5) * _LINE / 72)  # inches for each point
    size = tuple(min(max(_FONT * inches, 2.0), _MOST_INCHES) for inches in needed)
    ax = axes_or_new(ax, "TokenTree.plot", size=(size[0] + 0.5, size[1] + 0.5))
    box = ax.get_window_extent().transformed(ax.figure.dpi_scale_trans.inverted())
    font = max(min(_FONT, box.width / needed[0], box.height / needed[1]), _SMALLEST_FONT)

    kept = {0, *accepted} if accepted else set()
    for node, parent in enumerate(parents):
        if parent >= 0:
            strong = node in kept
            ax.plot(
                [lefts[depths[parent]] + 1, lefts[depths[node]]],  # labels hide where it begins
                [heights[parent], heights[node]],
                color="black" if strong else "0.55",
                linewidth=2.0 if strong else 0.8,
                zorder=1,
            )
    for node, label in enumerate(labels):
        strong = node in kept
        ax.text(
            lefts[depths[node]],
            heights[node],
            label,
            fontsize=font,
            family="monospace",
            weight="bold" if strong else "normal",
            va="center",
            parse_math=False,  # a token may be "$"
            bbox={
                "boxstyle": "square,pad=0.15",
                "facecolor": "white",
                "edgecolor": "black" if strong else "0.55",
                "linewidth": 1.5 if strong else 0.8,
            },
            zorder=2,
        )
    ax.set(xlim=(-1, width), ylim=(leaves - 0.4, -0.6))
    ax.set_axis_off()
    return ax


def _cut(label: str) -> str:
    """Return a label short enough for its column."""
    return label if len(label) <= _LONGEST_LABEL else label[: _LONGEST_LABEL - 3] + "..."


def _drawable(labels: Sequence[str]) -> list[str]:
    """Return labels with escapes for what the font has no glyph for, Chinese say."""
    try:
        from matplotlib.font_manager import FontProperties, findfont, get_font
    except ImportError:
        return list(labels)  # axes_or_new tells
    font = get_font(findfont(FontProperties(family="monospace")))
    return [
        "".join(c if font.get_char_index(ord(c)) else ascii(c)[1:-1] for c in label)
        for label in labels
    ]


def _columns(labels: Sequence[str], depths: Sequence[int]) -> tuple[list[int], int]:
    """Return where the labels of each depth begin, in characters, and the width of all."""
    widths = [0] * (1 + max(depths))
    for label, depth in zip(labels, depths, strict=True):
        widths[depth] = max(widths[depth], text_width(label) + _BETWEEN)
    lefts = [sum(widths[:depth]) for depth in range(len(widths))]
    return lefts, sum(widths)


def _heights(parents: Sequence[int]) -> tuple[list[float], int]:
    """Return the height of each node, leaves at 0, 1, ... and parents amid their children."""
    children = children_of(parents)
    heights, leaves = [0.0] * len(parents), 0
    todo = [0]
    while todo:
        node = todo.pop()
        if not children[node]:
            heights[node] = leaves
            leaves += 1
        todo += reversed(children[node])
    for node in range(len(parents) - 1, -1, -1):
        if children[node]:
            heights[node] = (heights[children[node][0]] + heights[children[node][-1]]) / 2
    return heights, leaves

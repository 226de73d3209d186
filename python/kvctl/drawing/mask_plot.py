"""A mask as a picture: black where a new token sees a key."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from .axes import axes_or_new, integer_ticks

Bool = npt.NDArray[np.bool_]

# A picture has some 500 pixels either way: cells of four across are seen, one by one, and two down.
_MOST_COLUMNS, _MOST_ROWS = 128, 256
# Cells are outlined where there are few enough to count.
_OUTLINED_ROWS, _OUTLINED_COLUMNS = 40, 80
# Grey of a cell in which few or most keys are visible: neither white nor black.
_LIGHTEST, _DARKEST = 0.4, 0.7
_GAP = 0.3  # between two blocks, in heights of a block


def draw_masks(blocks: Sequence[tuple[str, Bool]], ax: Any) -> Any:
    """Draw matrices one below the other on the same axes, each under its title.

    Parameters
    ----------
    blocks
        Title and (num_new, num_columns) matrix of each; all matrices have one shape.
    ax
        matplotlib.axes.Axes, or None for a new figure.

    Returns
    -------
    matplotlib.axes.Axes
    """
    num_new, num_columns = blocks[0][1].shape
    height = min(max(4.8, 0.9 * len(blocks)), 40.0)
    ax = axes_or_new(ax, "Mask.plot", size=(6.4, height))
    keys = -(-num_columns // _MOST_COLUMNS)
    queries = -(-num_new * len(blocks) // _MOST_ROWS)
    pitch = num_new + (ceil(_GAP * num_new) if len(blocks) > 1 else 0)
    ticks = integer_ticks(num_new, max(1, 12 // len(blocks)))
    positions, names = [], []
    for number, (title, matrix) in enumerate(blocks):
        top = number * pitch
        _draw_block(ax, matrix, top, queries, keys)
        if title:
            ax.text(-0.5, top - 0.6, title, fontsize="small", va="bottom", parse_math=False)
        positions += [top + tick for tick in ticks]
        names += [str(tick) for tick in ticks]
    first = -0.5 - (pitch - num_new)
    margin = 0.5 if keys == 1 else 0.01 * num_columns  # so that the frame hides no cell
    ax.set(
        xlim=(-margin, num_columns - 1 + margin),
        ylim=(pitch * (len(blocks) - 1) + num_new - 0.5, first),
        xticks=integer_ticks(num_columns, 9),
        xlabel="key" if keys == 1 else f"key ({keys} to a cell; grey: some are visible)",
        ylabel="new token" if queries == 1 else f"new token ({queries} to a cell)",
    )
    ax.set_yticks(positions, names)
    past = num_columns - num_new
    if past:
        ax.axvline(past - 0.5, linewidth=1.5, linestyle="--", color="tab:red")
        where = ax.get_xaxis_transform()
        ax.text(past - 0.5, 1.01, "past | new", transform=where, ha="center", va="bottom")
    return ax


def _draw_block(ax: Any, matrix: Bool, top: int, queries: int, keys: int) -> None:
    """Draw one matrix with its first row at `top`, cells of (queries, keys) each."""
    shades = _shades(matrix, queries, keys)
    rows, columns = shades.shape
    extent = (-0.5, columns * keys - 0.5, top + rows * queries - 0.5, top - 0.5)
    ax.imshow(
        shades, aspect="auto", interpolation="nearest", cmap="Greys", vmin=0, vmax=1, extent=extent
    )
    num_new, num_columns = matrix.shape
    left, right, bottom = -0.5, num_columns - 0.5, top + num_new - 0.5
    if num_new <= _OUTLINED_ROWS and num_columns <= _OUTLINED_COLUMNS:
        grid = {"colors": "0.75", "linewidth": 0.5}
        ax.hlines(np.arange(1, num_new) + top - 0.5, left, right, **grid)
        ax.vlines(np.arange(1, num_columns) - 0.5, top - 0.5, bottom, **grid)
    ax.hlines([top - 0.5, bottom], left, right, colors="black", linewidth=0.8)


def _shades(matrix: Bool, queries: int, keys: int) -> npt.NDArray[np.float64]:
    """Return the grey of each cell: 0 where nothing is visible, 1 where everything is.

    A cell in which anything is visible is never lighter than `_LIGHTEST`: a few sinks before a
    long past are seen.
    """
    row_starts = np.arange(0, matrix.shape[0], queries)
    column_starts = np.arange(0, matrix.shape[1], keys)
    seen = np.add.reduceat(matrix.astype(np.int64), row_starts, axis=0)
    seen = np.add.reduceat(seen, column_starts, axis=1)
    sizes = np.outer(
        np.diff(np.append(row_starts, matrix.shape[0])),
        np.diff(np.append(column_starts, matrix.shape[1])),
    )
    share = seen / sizes
    partly = _LIGHTEST + (_DARKEST - _LIGHTEST) * share
    shades: npt.NDArray[np.float64] = np.where((seen == 0) | (seen == sizes), share, partly)
    return shades


def block_title(layers: Sequence[int], heads: Sequence[int]) -> str:
    """Return the title of a part of a mask that has other masks elsewhere, as "layers 0, 2-5"."""
    parts = [
        f"{name}{'s' if len(indices) > 1 else ''} {_spans(indices)}"
        for name, indices in (("layer", layers), ("KV head", heads))
        if indices
    ]
    return ", ".join(parts)


def _spans(indices: Sequence[int]) -> str:
    """Return ascending numbers as text, runs of three and more as "first-last"."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][-1] == index - 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ", ".join(
        f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs
    )

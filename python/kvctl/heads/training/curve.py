"""The picture of a training: its loss, and what held-out texts gained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

_WIDTH, _HEIGHT, _EDGE = 720, 360, 48


def write_curve(path: Path, record: dict[str, Any]) -> None:
    """Write an SVG file: loss by batch (grey), and of held-out texts the expected tokens (blue)."""
    losses = record["losses"]
    held_out = record["held_out"]
    window = max(1, len(losses) // 200)
    smooth = [
        (i + window, sum(losses[i : i + window]) / len(losses[i : i + window]))
        for i in range(0, len(losses), window)
    ]
    gained = [(one["batch"], one["expected_tokens"]) for one in held_out]
    last = max([1, *(x for x, _ in smooth), *(x for x, _ in gained)])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
    ]
    for points, colour, name, right in (
        (smooth, "#888", "loss", False),
        (gained, "#06c", "expected tokens of a round", True),
    ):
        if points:
            parts += _line(points, last, colour, name, right=right)
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 12}">batches (to {last})</text></svg>')
    path.write_text("\n".join(parts))


def _line(
    points: Sequence[tuple[float, float]], last: float, colour: str, name: str, *, right: bool
) -> list[str]:
    """Return a line over its own scale, whose ends are written beside it."""
    low, high = min(y for _, y in points), max(y for _, y in points)
    span = (high - low) or 1.0
    inside = _HEIGHT - 2 * _EDGE
    drawn = " ".join(
        f"{_EDGE + x / last * (_WIDTH - 2 * _EDGE):.1f},{_EDGE + (high - y) / span * inside:.1f}"
        for x, y in points
    )
    x, anchor = (_WIDTH - 8, "end") if right else (8, "start")
    return [
        f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{drawn}"/>',
        f'<text x="{x}" y="{_EDGE - 24}" text-anchor="{anchor}" fill="{colour}">{name}</text>',
        f'<text x="{x}" y="{_EDGE - 8}" text-anchor="{anchor}" fill="{colour}">{high:.3g}</text>',
        f'<text x="{x}" y="{_HEIGHT - _EDGE + 14}" text-anchor="{anchor}" fill="{colour}">'
        f"{low:.3g}</text>",
    ]

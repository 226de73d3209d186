"""A token tree as text: a line for each node, indented by depth."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

Decode = Callable[[list[int]], str]


def node_label(node: int, token: int, decode: Decode | None) -> str:
    """Return "node:token", or "node:'text'" with the token's text as Python would quote it.

    Raises
    ------
    TypeError
        If `decode` returns no text.
    """
    if decode is None:
        return f"{node}:{token}"
    text = decode([token])
    if not isinstance(text, str):
        raise TypeError(f"decode must return the text of [token], got {type(text).__name__}")
    return f"{node}:{text!r}"


def text_width(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def children_of(parents: Sequence[int]) -> list[list[int]]:
    """Return the children of each node, in order."""
    children: list[list[int]] = [[] for _ in parents]
    for node, parent in enumerate(parents):
        if parent >= 0:
            children[parent].append(node)
    return children


def tree_text(
    tokens: Sequence[int],
    parents: Sequence[int],
    depths: Sequence[int],
    *,
    max_nodes: int | None,
    decode: Decode | None,
) -> str:
    """Draw a tree in characters; see `TokenTree.to_text`."""
    children = children_of(parents)
    order = sorted(range(len(tokens)), key=lambda node: (depths[node], node))
    shown = set(order[:max_nodes])
    hidden = [0] * len(tokens)  # nodes below this one that are left out
    for node in range(len(tokens) - 1, 0, -1):
        hidden[parents[node]] += hidden[node] + (node not in shown)

    lines = []
    todo = [(0, node_label(0, tokens[0], decode), "")]  # node, its line, indentation below
    while todo:  # not by recursion: a chain may be long
        node, line, indent = todo.pop()
        lines.append(line)
        if node < 0:
            continue
        kept = [child for child in children[node] if child in shown]
        below = [(child, node_label(child, tokens[child], decode)) for child in kept]
        left_out = hidden[node] - sum(hidden[child] for child in kept)
        if len(kept) < len(children[node]):
            below.append((-1, f"... {left_out} more"))
        for i, (child, label) in reversed(list(enumerate(below))):
            head, rest = ("`- ", "   ") if i == len(below) - 1 else ("|- ", "|  ")
            todo.append((child, indent + head + label, indent + rest))
    return "\n".join(lines)

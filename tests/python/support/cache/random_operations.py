"""A stream of random cache operations, steered by the model so that most of them make sense."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

from kvctl.testing.cache_model import CacheModel, Tokens

Operation = tuple[Any, ...]


def random_operations(
    model: CacheModel,
    rng: Random,
    *,
    max_sequences: int = 6,
    max_new: int = 9,
    windows: bool = False,
) -> Iterator[Operation]:
    """Yield operations for the state that the model is in each time; a few of them are mistakes."""
    while True:
        yield _operation(model, rng, max_sequences, max_new, windows)


def _operation(
    model: CacheModel, rng: Random, max_sequences: int, max_new: int, windows: bool
) -> Operation:
    known = list(model.sequences)
    anyone = rng.randrange(max_sequences)
    if not known:
        return ("add", anyone)
    someone = rng.choice(known) if rng.random() < 0.97 else anyone
    tokens = model.sequences.get(someone, Tokens())
    length = len(tokens)
    kind = rng.random()
    if kind < 0.05:
        return ("add", anyone)
    if kind < 0.09:
        return ("remove", someone)
    if kind < 0.17:
        position = rng.choice([-1, length, rng.randint(0, length), rng.randint(-2, length + 1)])
        return ("fork", someone, anyone, position)
    if kind < 0.25:
        return ("popn", someone, _skewed(rng, length) if rng.random() < 0.95 else length + 1)
    if kind < 0.31:
        return ("checkpoint", someone, 2 * someone + rng.randrange(2))
    if kind < 0.37:
        name = rng.randrange(12) if rng.random() < 0.1 else 2 * someone + rng.randrange(2)
        return ("rollback", someone, name)
    if kind < 0.39:
        if not windows:
            return ("check", someone)
        return (
            "window",
            someone,
            rng.choice([1, 3, 6, 12, 0]),
            rng.choice([0, 0, 1, 5]),
            rng.choice([0, 2, 8]),
            rng.random() < (0.05 if model.rope_theta is None else 0.5),
        )
    if kind < 0.40:
        return ("save", someone, rng.randrange(3))
    if kind < 0.415:
        free = [seq_id for seq_id in range(max_sequences) if seq_id not in known]
        return ("load", rng.choice(free or [anyone]), rng.randrange(3))
    if kind < 0.417:
        return ("move", rng.choice([1, 2, 3, 4, 7, 16]))
    if kind < 0.435:
        return ("abort", rng.choice([None, (someone,), tuple(known[:2])]))
    if kind < 0.48 and not (tokens.pending and rng.random() < 0.9):
        return ("evict", someone, _kept_tokens(tokens, rng), rng.random() < 0.4)
    pending = [seq_id for seq_id in known if model.sequences[seq_id].pending]
    if kind < 0.60 and pending:
        chosen = rng.sample(pending, rng.randint(1, min(4, len(pending))))
        return (
            "commit",
            tuple((seq_id, _kept(model.sequences[seq_id], rng)) for seq_id in chosen),
            rng.random() < 0.4,
        )
    if kind < 0.63:
        return ("check", someone)
    return _step(model, rng, known, max_new, windows)


def _step(
    model: CacheModel, rng: Random, known: list[int], max_new: int, windows: bool
) -> Operation:
    chosen = rng.sample(known, rng.randint(1, min(4, len(known))))
    trees = rng.random()
    pending = rng.choice([None, None, None, True])
    parts: list[tuple[int, Any]] = []
    for seq_id in chosen:
        tokens = model.sequences[seq_id]
        old = len(tokens.pending)
        new = 1 + _skewed(rng, max_new - 1)
        # A chain follows pending tokens only as pending itself: else a tree, or that mistake.
        wants_tree = trees < 0.3 or (trees < 0.5 and rng.random() < 0.5)
        fits = not old or (pending and tokens.is_chain)
        if wants_tree or (not fits and rng.random() < 0.97):
            parents = [_parent(rng, old + index) for index in range(new)]
            if rng.random() < 0.02:
                parents[-1] = old + new
            parts.append((seq_id, tuple(parents)))
        elif rng.random() < 0.15:
            parts.append((seq_id, ("full", new, rng.randrange(1000))))
        else:
            parts.append((seq_id, new))
    shift = rng.choice([-2, -1, 1, 7]) if rng.random() < 0.03 else 0
    if windows and rng.random() < 0.8:  # which do not take positions that go back
        shift = abs(shift)
    finish = rng.choices(["end", "abort", "late"], [20, 1, 1])[0]
    return ("step", tuple(parts), pending, rng.randrange(4000), finish, shift)


def _parent(rng: Random, nodes: int) -> int:
    """Often the last node, or its parent's sibling, sometimes a new root."""
    return nodes - 1 - _skewed(rng, nodes)


def _kept(tokens: Tokens, rng: Random) -> tuple[int, ...]:
    kind = rng.random()
    if kind < 0.15:
        return ()
    if kind < 0.8:
        path = tokens.ancestors(rng.randrange(len(tokens.pending)))
        return tuple(path[: rng.randint(1, len(path))])
    if kind < 0.97:  # not a path, but one node of each depth, in order
        kept: list[int] = []
        for node, depth in enumerate(tokens.depths):
            if depth == len(kept) and rng.random() < 0.6:
                kept.append(node)
        return tuple(kept)
    return tuple(rng.randrange(-1, len(tokens.pending) + 1) for _ in range(rng.randint(1, 3)))


def _kept_tokens(tokens: Tokens, rng: Random) -> tuple[int, ...]:
    """A random subset, a run that is cut out, or a mistake; seldom what a window has evicted."""
    length = len(tokens.committed)
    held = [i for i in range(length) if tokens.committed[i] not in tokens.evicted]
    kind = rng.random()
    if kind < 0.03:
        return tuple(rng.randrange(-1, length + 1) for _ in range(rng.randint(1, 3)))
    if kind < 0.06:
        return tuple(range(length))
    if kind < 0.4:
        begin, end = sorted((rng.randint(0, length), rng.randint(0, length)))
        return tuple(i for i in held if not begin <= i < end)
    share = rng.choice([0.1, 0.5, 0.9, 1.0])
    return tuple(i for i in held if rng.random() < share)


def _skewed(rng: Random, most: int) -> int:
    """0 to most, small ones more often."""
    return int((most + 1) * rng.random() ** 2)

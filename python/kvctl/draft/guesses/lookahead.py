"""Drafting from n-grams that the target guessed on its way."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index

from ...tree import TokenTree
from ..budget import Budget
from ..draft import Draft
from ..drafter import Drafter
from ..request import Request
from ..round_result import RoundResult
from ..top_tokens import choices
from .ngram_pool import NgramPool

Window = list[list[int]]  # levels, each of `window` guesses


class LookaheadDrafter(Drafter):
    """Lookahead decoding: Jacobi iterations side by side fill a pool of n-grams (2402.02057).

    Beside the drafts, each round forwards a window of guesses: its first level guesses the next
    `window` tokens, each further level what followed the level before, one iteration earlier. The
    levels of one column are an n-gram that the target itself found likely. N-grams that begin with
    the text's last token are the drafts.

    In the paper the window has a mask of its own. It is a tree all the same: the first level is a
    chain behind the root, and the further levels of a column are a chain behind its first. So the
    window is verified with the drafts, and what is right in it is accepted.

    Parameters
    ----------
    window
        Columns of the window.
    n
        Length of an n-gram; the window has n - 1 levels.
    guesses
        N-grams that are kept for each first token, and drafted.

    Raises
    ------
    ValueError
        If `window` or `guesses` is less than 1, or `n` less than 2.

    Notes
    -----
    The tree is verified whole, whatever it promises: to cut it would end the iterations. Where the
    limit leaves no room for the window, only n-grams are drafted.

    Examples
    --------
    >>> drafter = kvctl.draft.LookaheadDrafter(window=5, n=3, guesses=5)
    """

    wants_logits = True

    def __init__(self, *, window: int = 5, n: int = 4, guesses: int = 5) -> None:
        for name, value, least in (("window", window, 1), ("n", n, 2), ("guesses", guesses, 1)):
            if index(value) < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.window, self.n, self.guesses = window, n, guesses
        self.pool = NgramPool(n, guesses)
        self._windows: dict[int, Window] = {}
        self._places: dict[int, list[list[int]]] = {}  # the node of each guess, while in a round

    def start(self, request: Request) -> None:
        """Pool the n-grams of the prompt, and begin a window with its last tokens."""
        self.pool.add_all(request.tokens)
        self._windows[request.id] = [
            _filler(request, self.window, level) for level in range(self.n - 1)
        ]

    def propose(self, requests: Sequence[Request], budget: Budget) -> list[Draft]:
        """Draft the pooled n-grams and the window of each text."""
        return [self._propose(request) for request in requests]

    def observe(self, results: Sequence[RoundResult]) -> None:
        """Pool the n-grams of the columns, and move the windows on."""
        for result in results:
            request, emitted = result.request, len(result.emitted)
            self.pool.add_all(request.tokens[-emitted - self.n :])
            places = self._places.pop(request.id, None)
            following = choices(result.nodes, result.logits)
            if places is None or not all(node in following for node in places[-1]):
                continue  # the window was not verified
            levels = self._windows[request.id]
            last = [following[node] for node in places[-1]]
            for column in range(self.window):
                self.pool.add([*(level[column] for level in levels), last[column]])
            # A guess of level l + 1 is of the token that one of level l will be of, a token later.
            moved = [level[emitted - 1 :] for level in [*levels[1:], last]]
            self._windows[request.id] = [
                level + _filler(request, self.window - len(level), i)
                for i, level in enumerate(moved)
            ]

    def finish(self, request: Request) -> None:
        """Forget the window of a text; the pool stays."""
        self._windows.pop(request.id, None)
        self._places.pop(request.id, None)

    def _propose(self, request: Request) -> Draft:
        tree = _Tree(request.root)
        for tail in self.pool.after(request.root):
            if len(tree.tokens) + len(tail) <= request.limit + 1:
                tree.add(0, tail)
        self._places.pop(request.id, None)
        levels = self._windows[request.id]
        if len(tree.tokens) + self.window * (self.n - 1) <= request.limit + 1:
            first = tree.add(0, levels[0])
            columns = [
                tree.add(node, [level[column] for level in levels[1:]])
                for column, node in enumerate(first)
            ]
            self._places[request.id] = [
                first,
                *([column[i] for column in columns] for i in range(self.n - 2)),
            ]
        return Draft(TokenTree(tree.tokens, tree.parents))


class _Tree:
    """A tree that grows by paths; equal paths are there once."""

    def __init__(self, root: int) -> None:
        self.tokens, self.parents = [root], [-1]
        self._children: dict[tuple[int, int], int] = {}

    def add(self, node: int, path: Sequence[int]) -> list[int]:
        """Add a path behind a node, and return its nodes."""
        nodes = []
        for token in path:
            child = self._children.setdefault((node, token), len(self.tokens))
            if child == len(self.tokens):
                self.tokens.append(token)
                self.parents.append(node)
            node = child
            nodes.append(node)
        return nodes


def _filler(request: Request, count: int, level: int) -> list[int]:
    """Return guesses where nothing better is known: tokens of the text."""
    tokens = request.tokens
    return [tokens[-1 - (7 * i + 3 * level) % len(tokens)] for i in range(count)]

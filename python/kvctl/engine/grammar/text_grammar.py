"""The grammar of one text: advanced with it, and asked for the masks of a drafted tree."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from ...tree import TokenTree
from .bitmask import Words, all_allowed, allows, clear_tail, only_token
from .protocol import Grammar


@dataclass(frozen=True)
class Walk:
    """What a grammar says of a tree.

    Attributes
    ----------
    legal : list of bool
        (N,) whether the grammar allows the path to a node, the node included.
    masks : numpy.ndarray
        (N + F, W) int32, the tokens allowed after each node. Rows that nothing can be emitted from
        allow everything: those of nodes that are not legal, and of nodes where the grammar has
        ended.
    forced : list of (int, int)
        F nodes that are not in the tree and follow by necessity: parent and token; the first is
        node N.
    sure : list of int
        The nodes behind the root that are the only ones allowed, from the root on.
    """

    legal: list[bool]
    masks: Words
    forced: list[tuple[int, int]]
    sure: list[int]


class TextGrammar:
    """A matcher that stands behind the last token of its text.

    Parameters
    ----------
    grammar
        The matcher, of this text alone.
    vocab_size
        The model's, which is the length of a row of logits.
    """

    def __init__(self, grammar: Grammar, vocab_size: int) -> None:
        self.matcher = grammar
        self._vocab_size = vocab_size
        self._accepted = 0

    def advance(self, token: int) -> bool:
        """Go on by an emitted token; return whether the grammar has ended with it.

        Raises
        ------
        ValueError
            If the grammar refuses the token.
        """
        if not self.matcher.accept_token(token):
            raise ValueError(
                f"the grammar refuses token {token}, the text's new token {self._accepted}; either "
                "its mask allowed the token, or the rule emits what the target cannot"
            )
        self._accepted += 1
        return self.matcher.is_terminated()

    def restore(self) -> None:
        """Take back all that was accepted: the generation was given up."""
        # A matcher that is broken must not hide what was raised before.
        with suppress(Exception):
            if self._accepted:
                self.matcher.rollback(self._accepted)
        self._accepted = 0

    def mask(self) -> Words:
        """Return (1, W) int32, the tokens that may come next.

        Raises
        ------
        ValueError
            If there are none.
        """
        words = all_allowed(1, self._vocab_size)
        self.matcher.fill_next_token_bitmask(words, 0)
        clear_tail(words, self._vocab_size)
        if not words.any():
            raise ValueError(
                f"the grammar allows no token after {self._accepted} new tokens of the text, and "
                "has not ended"
            )
        return words

    def walk(self, tree: TokenTree, most: int) -> Walk:
        """Return what the grammar says of a tree whose root is the text's last token.

        The matcher's state is the same afterwards, also if it raises.

        Parameters
        ----------
        most
            The most forced nodes to name.
        """
        size, tokens = len(tree), tree.tokens.tolist()
        children: list[list[int]] = [[] for _ in tokens]
        for node, parent in enumerate(tree.parents.tolist()[1:], start=1):
            children[parent].append(node)
        legal, sure = [False] * size, [0]
        forced: list[tuple[int, int]] = []
        masks = {0: self.mask()[0]}
        stack, depth = [(0, 0)], 0  # a node, and how many tokens lie between the root and it
        try:
            while stack:
                node, above = stack.pop()
                if depth > above:
                    self.matcher.rollback(depth - above)
                    depth = above
                if node:
                    if not self.matcher.accept_token(tokens[node]):
                        continue
                    depth += 1
                if node < size:
                    legal[node] = True
                if node:
                    mask = self._mask_below()
                    if mask is None:
                        continue
                    masks[node] = mask
                row = masks[node]
                only = only_token(row)
                below = [child for child in children[node] if allows(row, tokens[child])]
                if only is not None and not below and len(forced) < most:
                    below = [len(tokens)]
                    tokens.append(only)
                    children.append([])
                    forced.append((node, only))
                if only is not None and below and node == sure[-1]:
                    sure.append(below[0])
                stack += [(child, depth) for child in reversed(below)]
        finally:
            if depth:
                self.matcher.rollback(depth)
        out = all_allowed(len(tokens), self._vocab_size)
        for node, mask in masks.items():
            out[node] = mask
        return Walk(legal, out, forced, sure[1:])

    def _mask_below(self) -> Words | None:
        """Return what may follow a drafted node; None if nothing can."""
        if self.matcher.is_terminated():
            return None
        words = all_allowed(1, self._vocab_size)
        self.matcher.fill_next_token_bitmask(words, 0)
        clear_tail(words, self._vocab_size)
        # Where a grammar is stuck, the text's next token is refused, as without drafts.
        return np.asarray(words[0]) if words.any() else None

"""Drafters that grow a tree with a model, level by level."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from operator import index
from time import perf_counter

from ...verification import Sampling
from ..budget import Budget
from ..draft import Draft
from ..drafter import Drafter
from ..request import Request
from ..round_result import RoundResult
from ..sample import sample
from ..top_tokens import probabilities, top_tokens
from .confidence import Confidence
from .draft_vocabulary import DraftVocabulary
from .growing_tree import GrowingTree
from .pays import DraftingPays
from .runner import DraftModel
from .sequences import Sequences

_HOW = ("deterministic", "independent", "without_replacement", "coupled")


class GrowingDrafter(Drafter):
    """Grows trees level by level: a forward of a model for each level but the last.

    `ModelDrafter` and `SelfDrafter` say which model it is and where its tokens are kept.

    Parameters
    ----------
    sequences
        Where the model's tokens are kept.
    model
        The model; only its sizes are asked for.
    length, max_length, branching, beam, how, sampling
        See `ModelDrafter`.
    vocabulary
        Which of the target's tokens the model's logits are about; all of them by default.
    """

    costs_time = True

    def __init__(
        self,
        sequences: Sequences,
        model: DraftModel,
        *,
        length: int | None,
        max_length: int,
        branching: int | Sequence[int],
        beam: int | None,
        how: str,
        sampling: Sampling | None,
        vocabulary: DraftVocabulary | None = None,
    ) -> None:
        for name, value, least in (
            ("length", length, 0),
            ("max_length", max_length, 0),
            ("beam", beam, 1),
        ):
            if value is not None and index(value) < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if how not in _HOW:
            raise ValueError(f"how must be one of {', '.join(_HOW)}, got {how!r}")
        if beam is not None and how != "deterministic":
            raise ValueError(
                f"a beam keeps nodes by their value, which biases random draws; use "
                f"how='deterministic', not {how!r}"
            )
        widths = [index(branching)] if isinstance(branching, int) else [*map(index, branching)]
        if not widths or min(widths) < 1:
            raise ValueError(f"branching must be at least 1 on each level, got {branching}")
        self.length = length
        self.depth = max_length if length is None else length
        self.how = how
        self.confidence = Confidence()
        self._widths = [widths[min(d, len(widths) - 1)] for d in range(self.depth)]
        self._beam = beam
        self._sampling = sampling
        self._vocabulary = vocabulary
        self._sequences = sequences
        self._pays = DraftingPays()
        self._trees: dict[int, GrowingTree] = {}
        self._read: set[int] = set()  # texts whose prompts the model has read
        if max(widths) > model.vocab_size:
            raise ValueError(
                f"branching must be at most the model's vocabulary of {model.vocab_size} "
                f"tokens, got {max(widths)}"
            )
        widest, chunk = self._widest(), model.prefill_chunk_size
        if widest > chunk:
            raise ValueError(
                f"a level of the tree has {widest} nodes to extend, and the model forwards "
                f"at most {chunk} tokens at once; give a beam or less branching"
            )
        self._group = max(1, chunk // max(1, widest))

    def start(self, request: Request) -> None:
        """Begin a text; the model reads it with the first draft."""
        return

    def propose(self, requests: Sequence[Request], budget: Budget) -> list[Draft]:
        """Grow a tree for each text."""
        self._trees = {}
        if self._adapts and not self._pays.worthwhile(budget, requests):
            return [Draft.nothing(request.root) for request in requests]
        self._sequences.drop_pending(requests)
        able = [request for request in requests if request.limit > 0 and self.depth > 0]
        for first in range(0, len(able), self._group):
            self._grow(able[first : first + self._group], budget)
        self._sequences.leave_to_target(requests)
        return [
            self._trees[request.id].draft(self.how, rated=self._is_cut)
            if request.id in self._trees
            else Draft.nothing(request.root)
            for request in requests
        ]

    def observe(self, results: Sequence[RoundResult]) -> None:
        """Keep what was accepted, and learn from the round."""
        kept = {}
        for result in results:
            tree = self._trees.get(result.request.id)
            if tree is None:
                continue
            kept[self._sequences.id_of(result.request)] = tree.kept_rows(result.accepted)
            levels = tree.trials(result.emitted)
            self._pays.observe_depth(len(levels), sum(any(hit for _, hit in one) for one in levels))
            for probability, hit in chain.from_iterable(levels):
                self.confidence.observe(probability, hit)
        self._pays.observe_round(results)
        self._sequences.keep(kept)
        self._trees = {}

    def finish(self, request: Request) -> None:
        """Forget a text."""
        self._trees.pop(request.id, None)
        self._read.discard(request.id)
        self._sequences.finish(request)

    @property
    def _adapts(self) -> bool:
        return self.length is None and self.how == "deterministic"

    def _widest(self) -> int:
        """Return how many nodes of a level are forwarded at most."""
        widest, width = 1, 1
        for children in self._widths[:-1]:
            width *= children
            if self._beam is not None:
                width = min(width, self._beam)
            widest = max(widest, width)
        return widest

    def _grow(self, requests: Sequence[Request], budget: Budget) -> None:
        """Grow the trees of some texts together, a level with each forward."""
        begin = perf_counter()
        roots = self._sequences.catch_up(requests)
        seconds, known = perf_counter() - begin, self._read.issuperset(roots)
        self._pays.observe_catch_up(seconds, counts=known)
        self._read.update(roots)
        trees = [
            GrowingTree(request, roots[request.id][None], self._vocabulary)
            for request in requests
            if request.id in roots
        ]
        self._trees.update((tree.request.id, tree) for tree in trees)
        for depth in range(1, self.depth + 1):
            for tree in trees:
                self._extend(tree, depth)
            trees = [tree for tree in trees if self._goes_deeper(tree, depth)]
            if not trees or depth == self.depth:
                return
            if self._adapts and not self._pays.another_level(budget, len(requests), trees):
                return
            begin = perf_counter()
            logits = self._sequences.grow(
                [self._sequences.id_of(tree.request) for tree in trees],
                [[tree.tokens[node] for node in tree.frontier] for tree in trees],
                [tree.pending_parents() for tree in trees],
            )
            if logits is None:
                return
            self._pays.observe_level(perf_counter() - begin)
            row = 0
            for tree in trees:
                tree.forwarded(logits[row : row + len(tree.frontier)])
                row += len(tree.frontier)

    def _goes_deeper(self, tree: GrowingTree, depth: int) -> bool:
        """Return whether a tree has nodes to extend, and room for them."""
        room = self._sequences.depth_room(tree.request)
        return bool(tree.frontier) and (room is None or depth <= room)

    @property
    def _is_cut(self) -> bool:
        """Whether trees may have more nodes than the limit: the loop takes those that pay."""
        return self.how == "deterministic" and (self.length is None or self._beam is not None)

    def _extend(self, tree: GrowingTree, depth: int) -> None:
        """Add the children of the frontier, which become the next one."""
        width = self._widths[depth - 1]
        if not self._is_cut:  # before anything is drawn; the same for all nodes of a level
            room = tree.request.limit - (len(tree) - 1)
            width = min(width, room // len(tree.frontier))
        if width == 0:
            added = []
        elif self.how == "deterministic":
            added = self._add_likely(tree, width)
        else:
            added = self._draw(tree, width, depth)
        if self._beam is not None and len(added) > self._beam:
            best = sorted(added, key=lambda node: (-tree.rates[node], node))[: self._beam]
            added = sorted(best)
        tree.frontier = added

    def _add_likely(self, tree: GrowingTree, width: int) -> list[int]:
        tokens = top_tokens(tree.logits, width)
        shares = probabilities(tree.logits, tokens)
        for place, node in enumerate(tree.frontier):
            tree.said(node, tree.logits[place], tokens[place, 0], shares[place, 0])
        if self._vocabulary is not None:
            tokens = self._vocabulary.tokens(tokens)
        added = []
        for parent, row, values in zip(
            tree.frontier, tokens.tolist(), shares.tolist(), strict=True
        ):
            for token, probability in zip(row, values, strict=True):
                rate = self.confidence.rate(probability)
                # Siblings exclude each other, so that of learnt rates the sum may be too large.
                added.append(tree.add(parent, token, probability, rate))
        return added

    def _draw(self, tree: GrowingTree, width: int, depth: int) -> list[int]:
        request, count = tree.request, len(tree.frontier)
        logits = tree.logits
        if self._vocabulary is not None:
            logits = self._vocabulary.logits(logits)
        drawn = sample(
            logits,
            how=self.how,
            n=width,
            sampling=self._sampling or request.sampling,
            seed=request.seed,
            request_ids=[request.request_id] * count,
            root_positions=[request.root_position] * count,
            first_nodes=tree.next_draws(width),
            depths=[depth] * count,
        )
        added = []
        for parent, tokens, distribution in zip(
            tree.frontier, drawn.tokens.tolist(), drawn.probs, strict=True
        ):
            tree.drawn_from(parent, distribution)
            for token in tokens:
                if token >= 0:  # the support may have fewer
                    added.append(tree.add(parent, token, float(distribution[token]), 1.0))
        return added

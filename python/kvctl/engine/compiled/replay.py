"""The cache of a model with recurrent layers, which runs tokens again after a rollback."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...cache.paged_kv_cache import PagedKVCache
from ...recurrent.hybrid_cache import HybridCache
from ...recurrent.state import RecurrentState
from ..when_free import when_free

Append = Callable[[list[int], list[list[int]]], None]


@dataclass
class _Tokens:
    """The tokens of one sequence, some of which may have to run again.

    `special` counts the committed tokens up to the last one that ran under a mask or at positions
    of its own: what has to run again must lie behind it.
    """

    committed: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    special: int = 0
    pending_special: bool = False

    def copy(self) -> _Tokens:
        return _Tokens(list(self.committed), list(self.pending), self.special, self.pending_special)

    def first(self, count: int) -> _Tokens:
        """Return the first `count` tokens, pending ones counted."""
        inside = max(count - len(self.committed), 0)
        tokens = _Tokens(self.committed[:count], self.pending[:inside])
        tokens.special = min(self.special, len(tokens.committed))
        tokens.pending_special = self.pending_special and inside > 0
        return tokens

    def kept(self, path: list[int]) -> _Tokens:
        """Return the tokens after a commit of `path`."""
        tokens = _Tokens(self.committed + [self.pending[node] for node in path])
        tokens.special = len(tokens.committed) if self.pending_special and path else self.special
        return tokens


@dataclass(frozen=True)
class ReplayCheckpoint:
    """A point that a sequence of a :class:`ReplayingCache` can return to."""

    parts: Any
    tokens: _Tokens


class ReplayingCache:
    """The cache of a :class:`kvctl.ModelRunner` whose model has recurrent layers.

    It has the operations of :class:`kvctl.PagedKVCache` on sequences, with the same meaning. If no
    state is kept at the target of a rollback, it goes back to the last position that has one, or to
    the start if the kept states do not reach so far, and runs the tokens in between again, which
    the runner has recorded. Tokens that ran under a mask or at positions of their own do not run
    again. An operation either happens, with its tokens run again, or raises and changes nothing;
    until it has happened, the pages of both are held. Only the runner begins forwards.

    Attributes
    ----------
    parts : HybridCache or RecurrentState
        The arguments of the model's functions. Do not change their sequences directly.
    replayed_tokens : int
        How many tokens have run again so far.
    """

    def __init__(self, paged: PagedKVCache | None, state: RecurrentState, append: Append) -> None:
        self.parts: HybridCache | RecurrentState = state
        if paged is not None:
            self.parts = HybridCache(paged, state)
        self.state = state
        self.replayed_tokens = 0
        self._append = append
        self._tokens: dict[int, _Tokens] = {}

    def __repr__(self) -> str:
        return f"ReplayingCache({self.parts!r}, replayed_tokens={self.replayed_tokens})"

    # Sequences.

    def add_sequence(self, seq_id: int) -> None:
        """Add an empty sequence; see :meth:`kvctl.PagedKVCache.add_sequence`."""
        self.parts.add_sequence(seq_id)
        self._tokens[seq_id] = _Tokens()

    def remove_sequence(self, seq_id: int) -> None:
        """Remove a sequence; its checkpoints become invalid.

        Raises
        ------
        KeyError
            If there is no such sequence.
        """
        self.parts.remove_sequence(seq_id)
        del self._tokens[seq_id]

    def fork_sequence(self, parent: int, child: int, position: int = -1) -> None:
        """Make ``child`` a copy of the first ``position`` tokens of ``parent`` (-1: all).

        Raises
        ------
        KeyError, IndexError, ValueError
            If there is no parent, it is shorter, the child exists, or tokens cannot run again.
        kvctl.OutOfPagesError
            If what has to run again does not fit into the free pages.
        """
        if 0 < position < self.state.earliest_position(parent):
            replay = position
            self.parts.add_sequence(child)
        else:
            replay = self.parts.fork_sequence(parent, child, position)
        tokens = self._tokens[parent].copy()
        if position >= 0:
            tokens = tokens.first(position)
        try:
            self._run_again({child: (tokens, replay)})
        except BaseException:
            self.parts.remove_sequence(child)
            raise

    def __contains__(self, seq_id: int) -> bool:
        return seq_id in self.parts

    def clear(self) -> None:
        """Remove every sequence, also during a step."""
        self.parts.clear()
        self._tokens.clear()

    def sequence_length(self, seq_id: int) -> int:
        """Tokens of a sequence, pending ones counted."""
        return self.parts.sequence_length(seq_id)

    def pending_length(self, seq_id: int) -> int:
        """Pending tokens of a sequence."""
        return self.parts.pending_length(seq_id)

    @property
    def num_available_tokens(self) -> int:
        """Tokens that fit beside those cached now; any number if no layer attends."""
        return self.parts.num_available_tokens

    # What was forwarded.

    def record(self, seq_id: int, tokens: Sequence[int], *, special: bool = False) -> None:
        """Remember the tokens of a forward that has just ended; the runner calls this.

        `special` says that they ran under a mask that is no tree or at positions of their own.
        """
        known = self._tokens[seq_id]
        # The forward has happened: it must not be refused for a thread that looks at the cache now.
        if when_free(lambda: self.parts.pending_length(seq_id)) > len(known.pending):
            known.pending.extend(tokens)
            known.pending_special |= special
            return
        known.committed.extend(tokens)
        if special:
            known.special = len(known.committed)

    def commit(self, seq_ids: Sequence[int], kept: Sequence[Iterable[int]]) -> None:
        """Commit a path of each sequence's pending region and drop its other nodes.

        Raises
        ------
        KeyError, IndexError, ValueError
            If a sequence or a node does not exist, or the nodes are no path.
        """
        ids = list(seq_ids)
        paths = [list(path) for path in kept]
        points = [self.checkpoint(seq_id) for seq_id in ids]
        replay = self.parts.commit(ids, paths)
        targets = {}
        for seq_id, path, again in zip(ids, paths, replay, strict=True):
            targets[seq_id] = (self._tokens[seq_id].kept(path), again)
        self._run_again_or_return(targets, dict(zip(ids, points, strict=True)))

    def abort(self, seq_ids: Sequence[int] | None = None) -> None:
        """Drop the pending tokens of the named sequences, of all by default.

        Raises
        ------
        KeyError
            If there is no such sequence.
        """
        ids = list(self._tokens if seq_ids is None else seq_ids)
        self.parts.abort(ids)
        for seq_id in ids:
            known = self._tokens[seq_id]
            self._tokens[seq_id] = known.first(len(known.committed))

    # Rolling back.

    def popn(self, seq_id: int, n: int) -> None:
        """Take back the last ``n`` tokens: first pending nodes, then committed ones.

        Raises
        ------
        KeyError, ValueError
            If there is no such sequence, it has fewer tokens, or tokens cannot run again.
        kvctl.OutOfPagesError
            If what has to run again does not fit into the free pages.
        """
        point = self.checkpoint(seq_id)
        kept = self.sequence_length(seq_id) - n
        if 0 <= kept < self.state.earliest_position(seq_id):
            again = kept
            self.parts.restart(seq_id)
        else:
            again = self.parts.popn(seq_id, n)
        targets = {seq_id: (self._tokens[seq_id].first(kept), again)}
        self._run_again_or_return(targets, {seq_id: point})

    def checkpoint(self, seq_id: int) -> ReplayCheckpoint:
        """Return a point that :meth:`rollback` can return to exactly."""
        parts = self.parts.checkpoint(seq_id)
        return ReplayCheckpoint(parts, self._tokens[seq_id].copy())

    def rollback(self, seq_id: int, checkpoint: ReplayCheckpoint) -> None:
        """Make a sequence exactly what it was; the checkpoint stays valid.

        Raises
        ------
        ValueError
            If the checkpoint is of another sequence, or of one that was removed.
        """
        self.parts.rollback(seq_id, checkpoint.parts)
        self._tokens[seq_id] = checkpoint.tokens.copy()

    def _run_again_or_return(
        self, targets: dict[int, tuple[_Tokens, int]], points: dict[int, ReplayCheckpoint]
    ) -> None:
        try:
            self._run_again(targets)
        except BaseException:
            for seq_id, point in points.items():
                self.rollback(seq_id, point)
            raise

    def _run_again(self, targets: dict[int, tuple[_Tokens, int]]) -> None:
        """Run the last tokens of sequences again, as many as each entry says."""
        again = {seq_id: n for seq_id, (_, n) in targets.items() if n > 0}
        for seq_id, n in again.items():
            tokens = targets[seq_id][0]
            if len(tokens.committed) - n < tokens.special:
                raise ValueError(
                    f"the last {n} of the {len(tokens.committed)} tokens to keep in sequence "
                    f"{seq_id} would have to run again, and the first {tokens.special} cannot: "
                    "some ran under a mask or at positions of their own; go back to a checkpoint"
                )
        if again:
            ids = list(again)
            self._append(ids, [targets[seq_id][0].committed[-again[seq_id] :] for seq_id in ids])
            self.replayed_tokens += sum(again.values())
        for seq_id, (tokens, _) in targets.items():
            self._tokens[seq_id] = tokens

"""The cache of a model with recurrent layers, which runs tokens again after a rollback."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..cache.paged_kv_cache import PagedKVCache
from ..recurrent.hybrid_cache import HybridCache
from ..recurrent.state import RecurrentState

Append = Callable[[list[int], list[list[int]]], None]


@dataclass
class _Tokens:
    """The tokens of one sequence, some of which may have to run again."""

    committed: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)

    def copy(self) -> _Tokens:
        return _Tokens(list(self.committed), list(self.pending))


@dataclass(frozen=True)
class ReplayCheckpoint:
    """A point that a sequence of a :class:`ReplayingCache` can return to."""

    parts: Any
    tokens: _Tokens


class ReplayingCache:
    """The cache of a :class:`kvctl.ModelRunner` whose model has recurrent layers.

    It has the operations of :class:`kvctl.PagedKVCache` on sequences, with the same meaning. If no
    state is kept at the target of a rollback, it goes back to the last position that has one and
    runs the tokens in between again, which the runner has recorded. An operation either happens,
    with its tokens run again, or raises and changes nothing. Only the runner begins forwards.

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
            If there is no parent, it is shorter, the child exists, or the history is too short.
        """
        replay = self.parts.fork_sequence(parent, child, position)
        tokens = self._tokens[parent].copy()
        if position >= 0:
            inside = max(position - len(tokens.committed), 0)
            tokens = _Tokens(tokens.committed[:position], tokens.pending[:inside])
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

    def record(self, seq_id: int, tokens: Sequence[int]) -> None:
        """Remember the tokens of a forward that has just ended; the runner calls this."""
        known = self._tokens[seq_id]
        pending = self.parts.pending_length(seq_id) > len(known.pending)
        (known.pending if pending else known.committed).extend(tokens)

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
            known = self._tokens[seq_id]
            tokens = known.committed + [known.pending[node] for node in path]
            targets[seq_id] = (_Tokens(tokens), again)
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
            self._tokens[seq_id].pending.clear()

    # Rolling back.

    def popn(self, seq_id: int, n: int) -> None:
        """Take back the last ``n`` tokens: first pending nodes, then committed ones.

        Raises
        ------
        KeyError, ValueError
            If there is no such sequence, it has fewer tokens, or the history is too short.
        """
        point = self.checkpoint(seq_id)
        again = self.parts.popn(seq_id, n)
        known = self._tokens[seq_id]
        kept = len(known.pending) - n
        if kept >= 0:
            del known.pending[kept:]
            return
        targets = {seq_id: (_Tokens(known.committed[:kept]), again)}
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
        if again:
            ids = list(again)
            self._append(ids, [targets[seq_id][0].committed[-again[seq_id] :] for seq_id in ids])
            self.replayed_tokens += sum(again.values())
        for seq_id, (tokens, _) in targets.items():
            self._tokens[seq_id] = tokens

"""The cache of a model with attention layers and recurrent layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .._ffi.integers import to_int64
from ..cache.sequences import step_context

if TYPE_CHECKING:
    from ..cache.paged_kv_cache import PagedKVCache
    from ..cache.step_arguments import MaskLike
    from .state import RecurrentState


@dataclass(frozen=True)
class HybridCheckpoint:
    """A point that a sequence of a :class:`HybridCache` can return to."""

    cache: Any
    state: Any


class HybridCache:
    """A paged KV cache and a recurrent state that hold the same sequences.

    Every operation is applied to both or to neither: if one of them refuses it, the other is not
    changed, or is changed back. A model's functions take `cache` and `state` as two arguments. Do
    not change the sequences of only one of them: the next step would raise.

    If no state is kept at the target of a rollback (replay mode), *both* go back to the last
    position that has one. The call returns how many of the kept tokens have to run again through
    the model.

    Parameters
    ----------
    cache : PagedKVCache
        Of the attention layers.
    state : RecurrentState
        Of the recurrent layers.
    """

    def __init__(self, cache: PagedKVCache, state: RecurrentState) -> None:
        self.cache = cache
        self.state = state

    def __repr__(self) -> str:
        return f"HybridCache({self.cache!r}, {self.state!r})"

    # Sequences.

    def add_sequence(self, seq_id: int) -> None:
        """Add an empty sequence.

        Raises
        ------
        ValueError, RuntimeError
            If the id is taken or there is no room for another sequence.
        """
        self.state.add_sequence(seq_id)
        try:
            self.cache.add_sequence(seq_id)
        except BaseException:
            self.state.remove_sequence(seq_id)
            raise

    def remove_sequence(self, seq_id: int) -> None:
        """Remove a sequence; its checkpoints become invalid.

        Raises
        ------
        KeyError
            If there is no such sequence.
        RuntimeError
            If a step is in flight.
        """
        self._check_pair([seq_id])
        self._check_no_step("remove_sequence")
        self.cache.remove_sequence(seq_id)
        self.state.remove_sequence(seq_id)

    def fork_sequence(self, parent: int, child: int, position: int = -1) -> int:
        """Make ``child`` a copy of the first ``position`` tokens of ``parent`` (-1: all).

        Returns
        -------
        int
            Tokens that the child has to run again to get to ``position``; 0 where a state is kept.

        Raises
        ------
        KeyError, IndexError, ValueError
            If there is no parent, it is shorter, the child exists, or the history is too short.
        """
        self._check_pair([parent])
        replay = self.state.fork_sequence(parent, child, position)
        try:
            self.cache.fork_sequence(parent, child, position - replay)
        except BaseException:
            self.state.remove_sequence(child)
            raise
        return replay

    def __contains__(self, seq_id: int) -> bool:
        return seq_id in self.cache and seq_id in self.state

    def clear(self) -> None:
        """Remove every sequence, also during a step."""
        self.cache.clear()
        self.state.clear()

    def sequence_length(self, seq_id: int) -> int:
        """Tokens of a sequence, pending ones counted."""
        return self.state.sequence_length(seq_id)

    def pending_length(self, seq_id: int) -> int:
        """Pending tokens of a sequence."""
        return self.state.pending_length(seq_id)

    @property
    def num_available_tokens(self) -> int:
        """Tokens that the free pages of the attention layers' cache hold."""
        return self.cache.num_available_tokens

    # A step.

    @property
    def in_forward(self) -> bool:
        """Whether a step is in flight."""
        return self.state.in_forward

    def begin_forward(
        self,
        seq_ids: Sequence[int],
        append_lengths: Sequence[int],
        *,
        mask: MaskLike | Sequence[MaskLike | None] | None = None,
        positions: Any = None,
        pending: bool | None = None,
    ) -> None:
        """Begin a step; see :meth:`kvctl.PagedKVCache.begin_forward`.

        The recurrent layers follow the token tree of a mask that holds one. Other masks apply to
        the attention layers only.

        Raises
        ------
        kvctl.OutOfPagesError
            If pages or states are too few.
        RuntimeError
            If cache and state hold different lengths.
        """
        ids, lengths = _integers(seq_ids, "seq_ids"), _integers(append_lengths, "append_lengths")
        self._check_pair(ids)
        self.state.begin_forward(ids, lengths, mask=mask, pending=pending)
        try:
            self.cache.begin_forward(ids, lengths, mask=mask, positions=positions, pending=pending)
        except BaseException:
            self.state.abort()
            raise

    def end_forward(self) -> None:
        """End the step: tokens of chains are committed, nodes of trees stay pending.

        Raises
        ------
        RuntimeError
            If no step is in flight, or the forward has not set a recurrent state.
        """
        self.state.check_end_forward()
        self.cache.end_forward()
        self.state.end_forward()

    def commit(self, seq_ids: Sequence[int], kept: Sequence[Iterable[int]]) -> list[int]:
        """Commit a path of each sequence's pending region and drop its other nodes.

        Returns
        -------
        list of int
            For each sequence how many of its kept tokens, the last ones, have to run again.

        Raises
        ------
        KeyError, IndexError, ValueError
            If a sequence or a node does not exist, or the nodes are no path.
        """
        ids = _integers(seq_ids, "seq_ids")
        self._check_pair(ids)
        paths = [list(path) for path in kept]
        replay = self.state.plan_commit(ids, paths)
        kept_by_cache = [path[: len(path) - n] for path, n in zip(paths, replay, strict=True)]
        self.cache.commit(ids, kept_by_cache)
        return self.state.commit(ids, paths)

    def abort(self, seq_ids: Sequence[int] | None = None) -> None:
        """Take back what is not committed.

        During a step, this undoes the step. Otherwise it drops the pending nodes of the named
        sequences, of all by default.

        Raises
        ------
        KeyError
            If there is no such sequence.
        """
        if self.in_forward:
            self.cache.abort()
            self.state.abort()
            return
        ids = self.cache.sequence_ids if seq_ids is None else _integers(seq_ids, "seq_ids")
        self._check_pair(ids)
        self.cache.abort(ids)
        self.state.abort(ids)

    forward = step_context(begin_forward)

    # Rolling back.

    def popn(self, seq_id: int, n: int) -> int:
        """Take back the last ``n`` tokens: first pending nodes, then committed ones.

        Returns
        -------
        int
            Kept tokens that have to run again; 0 where a state is kept at the target.

        Raises
        ------
        KeyError, ValueError
            If there is no such sequence, it has fewer tokens, or the history is too short.
        """
        self._check_pair([seq_id])
        _, _, replay = self.state.plan_popn(seq_id, n)
        self.cache.popn(seq_id, n + replay)
        return self.state.popn(seq_id, n)

    def restart(self, seq_id: int) -> None:
        """Take back every token, however far the kept states reach; checkpoints stay valid.

        Raises
        ------
        KeyError, ValueError
            If there is no such sequence, or its window has evicted too many tokens.
        """
        self._check_pair([seq_id])
        self._check_no_step("restart")
        self.cache.popn(seq_id, self.cache.sequence_length(seq_id))
        self.state.restart(seq_id)

    def checkpoint(self, seq_id: int) -> HybridCheckpoint:
        """Return a point that :meth:`rollback` can return to exactly."""
        self._check_pair([seq_id])
        return HybridCheckpoint(self.cache.checkpoint(seq_id), self.state.checkpoint(seq_id))

    def rollback(self, seq_id: int, checkpoint: HybridCheckpoint) -> None:
        """Make a sequence exactly what it was; the checkpoint stays valid.

        Raises
        ------
        ValueError
            If the checkpoint is of another sequence, or of one that was removed.
        """
        if not isinstance(checkpoint, HybridCheckpoint):
            raise TypeError(
                f"rollback needs a checkpoint of a HybridCache, got {type(checkpoint).__name__}"
            )
        self.state.check_rollback(seq_id, checkpoint.state)
        self.cache.rollback(seq_id, checkpoint.cache)
        self.state.rollback(seq_id, checkpoint.state)

    def _check_pair(self, seq_ids: Sequence[int]) -> None:
        for seq_id in seq_ids:
            cached, remembered = self.cache.sequence_length(seq_id), self.sequence_length(seq_id)
            if self.in_forward:  # the cache counts the tokens of a step in flight already
                continue
            if cached != remembered:
                raise RuntimeError(
                    f"sequence {seq_id} has {cached} tokens in the paged cache and {remembered} in "
                    "the recurrent state: one of them was changed alone"
                )

    def _check_no_step(self, operation: str) -> None:
        if self.in_forward:
            raise RuntimeError(
                f"{operation} is not possible between begin_forward and end_forward; call "
                "end_forward or abort first"
            )


def _integers(values: Sequence[int], name: str) -> list[int]:
    """Return integers as a list, which can be read twice."""
    integers: list[int] = to_int64(values, name).tolist()
    return integers

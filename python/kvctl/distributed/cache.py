"""One logical cache over all workers."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from .._ffi.integers import to_shape
from ..cache.contents import kept_indices
from ..cache.paged_kv_cache import PagedKVCache
from .journal import Journal
from .program import Call, Kept, Own, function

if TYPE_CHECKING:
    import os

    from .session import Session


class DistributedCheckpoint:
    """A checkpoint on every worker."""

    def __init__(self, handle: Any, kept: Kept, journal: Journal) -> None:
        self.handle = handle
        self.kept = kept
        weakref.finalize(self, journal.add, "forget", kept).atexit = False


class DistributedKVCache(PagedKVCache):
    """The cache of a :class:`kvctl.distributed.ModelRunner`.

    The controller has the first worker's cache. What changes it happens there at once, or raises
    and changes nothing. The other workers have the same sequences and pages; they follow before
    their next step, and one that cannot ends the session.

    Behind a worker's death it can be read, and its sequences removed. Everything else raises the
    :class:`kvctl.distributed.WorkerError` of the death; where worker 0 could not leave its step,
    since a machine was stopped, everything does.

    K and V lie with the worker that has their heads, so steps are the model's alone: there is no
    ``begin_forward`` and no attention from Python.
    """

    def __init__(self, handle: Any, journal: Journal, session: Session) -> None:
        self._session = session
        super().__init__(handle)
        self._journal = journal

    @property
    def _handle(self) -> Any:
        """The first worker's cache, for whatever is done with it."""
        self._session.require_left()
        return self._first_handle

    @_handle.setter
    def _handle(self, handle: Any) -> None:
        self._first_handle = handle

    def add_sequence(self, seq_id: int) -> None:
        """Add an empty sequence."""
        self._change("vm.kv_state_add_sequence", seq_id)

    def remove_sequence(self, seq_id: int) -> None:
        """Remove a sequence; its checkpoints become invalid."""
        self._remove("vm.kv_state_remove_sequence", seq_id)

    def fork_sequence(self, parent: int, child: int, position: int = -1) -> None:
        """Make ``child`` a copy of the first ``position`` tokens of ``parent``."""
        self._change("vm.kv_state_fork_sequence", parent, child, position)

    def clear(self) -> None:
        """Remove every sequence."""
        self._remove("vm.kv_state_clear")

    def popn(self, seq_id: int, n: int) -> None:
        """Take back the last ``n`` tokens: first pending nodes, then committed ones."""
        self._change("cache.popn", seq_id, n)

    def commit(
        self, seq_ids: Sequence[int], kept: Sequence[Iterable[int]], *, any_nodes: bool = False
    ) -> None:
        """Commit the kept pending nodes of each sequence and drop its others."""
        ids, nodes = to_shape(seq_ids, "seq_ids"), [to_shape(one, "kept nodes") for one in kept]
        self._change("cache.commit", ids, nodes, bool(any_nodes))

    def abort(self, seq_ids: Sequence[int] | None = None) -> None:
        """Drop the pending nodes of the given sequences, of all by default."""
        ids = None if seq_ids is None else to_shape(seq_ids, "seq_ids", ordered=False)
        self._remove("cache.drop_pending", ids)

    def checkpoint(self, seq_id: int) -> DistributedCheckpoint:
        """Return a point that :meth:`rollback` can return to exactly, in constant time."""
        self._session.require_open()
        handle, kept = super().checkpoint(seq_id), self._journal.keep()
        self._journal.add("cache.checkpoint", Own.CACHE, seq_id, target=kept.number)
        return DistributedCheckpoint(handle, kept, self._journal)

    def rollback(self, seq_id: int, checkpoint: DistributedCheckpoint) -> None:
        """Make a sequence exactly what it was; the checkpoint stays valid."""
        self._session.require_open()
        call = Call("cache.rollback", (Own.CACHE, seq_id, checkpoint.kept))
        args = (self._handle, seq_id, checkpoint.handle)
        self._journal.change(call, function(call.name), args)

    def enable_sliding_window(
        self,
        seq_id: int,
        size: int,
        *,
        sinks: int = 0,
        horizon: int = 64,
        renumber_sinks: bool = False,
    ) -> None:
        """Give a sequence a sliding window, or another one."""
        self._change("cache.set_sliding_window", seq_id, size, sinks, horizon, renumber_sinks)

    def evict(self, seq_id: int, keep: Any, *, rerotate: bool = False) -> None:
        """Keep some committed tokens of a sequence and drop the others, in every layer."""
        length = self.sequence_length(seq_id) - self.pending_length(seq_id)
        indices = to_shape(kept_indices(keep, length), "keep")
        self._change("cache.evict", seq_id, indices, rerotate)

    def _change(self, name: str, *args: Any) -> None:
        """Change worker 0's cache, and have the others do the same before their next step."""
        self._session.require_open()
        self._remove(name, *args)

    def _remove(self, name: str, *args: Any) -> None:
        """Change the cache by less, which goes without the other workers, too."""
        call = Call(name, (Own.CACHE, *args))
        self._journal.change(call, function(name), (self._handle, *args))

    # What belongs to one worker's heads.

    def begin_forward(self, *_: Any, **__: Any) -> NoReturn:
        """Raise NotImplementedError: the model's forwards begin and end their steps."""
        self._refuse("begin_forward: forward, verify and prefill of the runner begin their steps")

    def attention(self, *_: Any, **__: Any) -> NoReturn:
        """Raise NotImplementedError: every worker attends with its own heads."""
        self._refuse("attention: every worker attends with its own heads")

    def save_sequence(self, seq_id: int, path: str | os.PathLike[str]) -> NoReturn:
        """Raise NotImplementedError: K and V lie with several workers."""
        self._refuse("save_sequence: K and V lie with several workers")

    def load_sequence(self, seq_id: int, path: str | os.PathLike[str]) -> NoReturn:
        """Raise NotImplementedError: K and V lie with several workers."""
        self._refuse("load_sequence: K and V lie with several workers")

    def get_kv(self, seq_id: int, begin: int = 0, end: int | None = None) -> NoReturn:
        """Raise NotImplementedError: K and V lie with several workers."""
        self._refuse("get_kv: K and V lie with several workers")

    def _refuse(self, what: str) -> NoReturn:
        raise NotImplementedError(f"a cache over several workers has no {what}")

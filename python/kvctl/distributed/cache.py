"""One logical cache over all workers."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import tvm_ffi

from .._ffi.convert import to_numpy, to_tensor
from .._ffi.integers import to_shape
from ..cache.contents import kept_indices
from ..cache.paged_kv_cache import PagedKVCache
from .heads import SAVED_FIELDS, Heads
from .messages.journal import Journal
from .messages.program import Call, Kept, OnFirst, Own, function, to_array

if TYPE_CHECKING:
    import os

    from tvm_ffi import Tensor

    from .calls import WorkerCalls
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
    :class:`kvctl.distributed.WorkerError` of the death.

    K and V lie with the worker that has their heads, so steps are the model's alone: there is no
    ``begin_forward`` and no attention from Python. ``get_kv``, ``save_sequence`` and
    ``load_sequence`` gather the heads, or share them out.
    """

    def __init__(self, handle: Any, journal: Journal, session: Session) -> None:
        self._session = session
        super().__init__(handle)
        self._journal = journal

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

    # What is gathered from all heads, or shared out.

    def use(self, calls: WorkerCalls, heads: Heads | None) -> None:
        """Take what reaches the other workers, and which heads each has, if that is known."""
        self._calls, self._heads = calls, heads

    def get_kv(self, seq_id: int, begin: int = 0, end: int | None = None) -> tuple[Tensor, Tensor]:
        """K and V of tokens ``[begin, end)``, the heads of all workers, in one step of theirs."""
        heads = self._require_heads("get_kv")
        if heads.first_has_all:
            return super().get_kv(seq_id, begin, end)
        if end is not None and end < 0:
            raise IndexError(f"end must not be negative, got {end}")
        parts = self._calls.gather("gather_kv", seq_id, begin, -1 if end is None else end)
        k, v = (to_tensor(heads.join(to_array(part))) for part in parts)
        return k, v

    def save_sequence(self, seq_id: int, path: str | os.PathLike[str]) -> None:
        """Write the committed tokens of a sequence, all heads, to a file of this machine.

        It is the file that one worker writes, for any number of workers.
        """
        from ..cache.sequence_file import SequenceFile

        heads = self._require_heads("save_sequence")
        if heads.first_has_all:
            super().save_sequence(seq_id, path)
            return
        saved, parts = self._calls.gather("gather_sequence", seq_id)
        numbers = {field: int(getattr(saved, field)) for field in SAVED_FIELDS}
        k, v = (heads.join(to_numpy(part)) for part in parts)
        SequenceFile(self._kv_layout(), numbers, to_numpy(saved.positions), k, v).write(path)

    def load_sequence(self, seq_id: int, path: str | os.PathLike[str]) -> None:
        """Add a sequence that :meth:`save_sequence` wrote, of any number of workers."""
        from ..cache.sequence_file import read_sequence_file

        self._session.require_open()
        heads = self._require_heads("load_sequence")
        file = read_sequence_file(path, self._kv_layout(), self.num_pages * self.page_size)
        parts = [heads.split(whole) for whole in (file.k, file.v)]
        positions = None if file.positions is None else file.positions.tolist()
        self._calls.load_sequence(
            to_shape([seq_id], "seq_id")[0],
            tvm_ffi.Shape(tuple(int(file.numbers[field]) for field in SAVED_FIELDS)),
            None if positions is None else tvm_ffi.Shape(tuple(positions)),
            tvm_ffi.Shape(parts[0].shape[1:]),
            OnFirst([to_tensor(part) for part in parts]),
        )

    def _kv_layout(self) -> dict[str, Any]:
        """Return the layout of the whole model's K and V."""
        layout = super()._kv_layout()
        return layout | ({} if self._heads is None else {"num_kv_heads": self._heads.total})

    def _require_heads(self, what: str) -> Heads:
        """Return which heads each worker has."""
        if self._heads is None:
            self._refuse(
                f"{what}: the model's configuration does not say which heads of keys each has "
                "(num_key_value_heads)"
            )
        if self.device.type != "cpu":
            self._refuse(f"{what} on {self.device.type}: NCCL gathers on devices alone")
        return self._heads

    def _refuse(self, what: str) -> NoReturn:
        raise NotImplementedError(f"a cache over several workers has no {what}")

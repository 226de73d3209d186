"""The forwards of a model on all workers: each happens on all of them or on none."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import tvm_ffi

from .errors import WorkerError
from .journal import Journal
from .program import Call, Own, encode

if TYPE_CHECKING:
    from ..cache.paged_kv_cache import PagedKVCache
    from .reports import Reports
    from .session import Session

_ALL = -1


class WorkerCalls:
    """Has the packed functions that run a model, under the names of ``kvctl.runner.*``.

    A call and all that happened to the cache before it travel in one message. What comes back is
    worker 0's result, which lies in this process.
    """

    def __init__(self, session: Session, journal: Journal, cache: PagedKVCache) -> None:
        self._session = session
        self._journal = journal
        self._cache = cache

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(handle: Any, *args: Any) -> Any:
            return self._run(name, args)

        setattr(self, name, call)
        return call

    def _run(self, name: str, args: tuple[Any, ...]) -> Any:
        journal, cache = self._journal, self._cache
        ids: Any = args[0] if name != "embed" else ()
        known = [seq_id for seq_id in ids if seq_id in cache]
        lengths = [cache.sequence_length(seq_id) for seq_id in known]
        end = journal.first + len(journal.calls)
        self._session.first.next_call = step = Call(f"runner.{name}", (Own.RUNNER, *args))
        program = tvm_ffi.Shape(
            (
                cache.num_available_pages,
                cache.total_sequence_length,
                journal.first,
                end,
                *encode([*journal.calls, step]),
            )
        )
        doing = f"during {name.removesuffix('_states')}"
        reports = self._session.call("execute", _ALL, program, doing=doing)
        journal.forget(end)
        if reports.failures:
            self._undo(reports, known, lengths, doing)
        return self._session.first.take_result()

    def _undo(self, reports: Reports, ids: list[int], lengths: list[int], doing: str) -> NoReturn:
        """Take the step back where it happened, and raise what stopped it elsewhere."""
        session = self._session
        error = session.first.error
        if reports.broken:
            session.join()
        if reports.done:
            who = sum(1 << worker for worker in reports.done)
            lists = (tvm_ffi.Shape(tuple(ids)), tvm_ffi.Shape(tuple(lengths)))
            first = self._journal.first
            session.first.next_call = undo = Call("undo", (Own.CACHE, *lists))
            program = tvm_ffi.Shape((-1, -1, first, first, *encode([undo])))
            undone = session.call("execute", who, program, who=who, doing="while a step was undone")
            if undone.failures:
                worker, failure = undone.cause()
                session.give_up(worker, f"could not undo a step ({failure.message})", doing)
        worker, failure = reports.cause()
        if error is not None and len(reports.failures) == session.workers and failure.mistake:
            raise error  # the user's mistake, which every worker has seen
        raise WorkerError(
            f"{session.name(worker)} failed {doing}: {failure.kind}: {failure.message}; nothing "
            "has changed, on no worker",
            worker=worker,
            closed=False,
        ) from error

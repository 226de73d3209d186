"""The forwards of a model on all workers: each happens on all of them or on none."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import tvm_ffi

from .errors import WorkerError
from .interrupts import DEFERRED
from .logits import SplitLogits
from .messages.journal import Journal
from .messages.program import Call, Kept, Own, encode
from .messages.wire import EXECUTE

if TYPE_CHECKING:
    from ..cache.paged_kv_cache import PagedKVCache
    from .messages.reports import Reports
    from .session import Session


class WorkerCalls:
    """Has the packed functions that run a model, under the names of ``kvctl.runner.*``.

    A call and all that happened to the cache before it travel in one message. What comes back is
    worker 0's result, which lies in this process.
    """

    def __init__(
        self,
        session: Session,
        journal: Journal,
        cache: PagedKVCache,
        vocab_size: int,
        *,
        join_logits: bool = True,
    ) -> None:
        self._session = session
        self._journal = journal
        self._cache = cache
        self._vocab_size = vocab_size
        self._joins = join_logits
        if not join_logits:
            self._run("set_join_logits", (False,))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(handle: Any, *args: Any) -> Any:
            return self._run(name, args)

        setattr(self, name, call)
        return call

    def _run(self, name: str, args: tuple[Any, ...]) -> Any:
        if self._joins or name in ("embed", "set_join_logits"):
            return self._call(f"runner.{name}", args)
        kept = self._journal.keep()
        try:
            result = self._call(f"runner.{name}", args, kept.number)
        except BaseException:
            self._forget(kept)
            raise
        first, *rest = [result] if isinstance(result, tvm_ffi.Tensor) else result
        shape = (int(first.shape[0]), self._vocab_size)
        logits = SplitLogits(shape, kept, self._ask, self._forget)
        return [logits, *rest] if rest else logits

    def _ask(self, name: str, kept: Kept, *args: Any) -> Any:
        return self._call(name, (kept, *args))

    def _forget(self, kept: Kept) -> None:
        self._session.first.forget(kept)
        self._journal.add("forget", kept)

    def gather(self, name: str, *args: Any) -> Any:
        """Run a function of `heads` on every worker; return what worker 0 has of it."""
        return self._call(name, args)

    def load_sequence(self, seq_id: int, *args: Any) -> None:
        """Add a sequence on all workers or on none; see `heads.scatter_sequence`."""
        self._call("scatter_sequence", (seq_id, *args), before=([seq_id], [-1]))

    def _call(
        self,
        name: str,
        args: tuple[Any, ...],
        target: int = -1,
        before: tuple[list[int], list[int]] | None = None,
    ) -> Any:
        with self._session.lock, DEFERRED:  # behind the step, its undoing included
            return self._step(name, args, target, before)

    def _step(
        self,
        name: str,
        args: tuple[Any, ...],
        target: int,
        before: tuple[list[int], list[int]] | None,
    ) -> Any:
        journal, cache = self._journal, self._cache
        what = name.removeprefix("runner.")
        forward = name.startswith("runner.") and what not in ("embed", "set_join_logits")
        if before is None:
            ids: Any = args[0] if forward else ()
            known = [seq_id for seq_id in ids if seq_id in cache]
            before = known, [cache.sequence_length(seq_id) for seq_id in known]
        end = journal.first + len(journal.calls)
        self._session.first.next_call = step = Call(name, (Own.RUNNER, *args), target)
        head = (
            cache.num_available_pages,
            cache.total_sequence_length,
            journal.first,
            end,
        )
        program = encode(head, [*journal.calls, step])
        doing = f"during {what.removesuffix('_states')}"
        reports = self._session.call(EXECUTE, program, doing=doing)
        journal.forget(end)
        if reports.failures:
            self._undo(reports, *before, doing)
        return self._session.first.take_result()

    def _undo(self, reports: Reports, ids: list[int], lengths: list[int], doing: str) -> NoReturn:
        """Take the step back where it happened, and raise what stopped it elsewhere."""
        session = self._session
        error = session.first.error
        if reports.broken:
            session.join()
        # A worker that failed may have changed its cache: a signal's handler may raise later.
        changed = reports.done | {i for i, one in reports.failures.items() if not one.mistake}
        if changed:
            who = sum(1 << worker for worker in changed)
            lists = (tvm_ffi.Shape(tuple(ids)), tvm_ffi.Shape(tuple(lengths)))
            first = self._journal.first
            session.first.next_call = undo = Call("undo", (Own.CACHE, *lists))
            program = encode((-1, -1, first, first), [undo])
            undone = session.call(EXECUTE, program, who=who, doing="while a step was undone")
            if undone.failures:
                worker, failure = undone.cause()
                session.give_up(worker, f"could not undo a step ({failure.message})", doing)
        worker, failure = reports.cause()
        mistakes = [one for one in reports.failures.values() if one.mistake]
        if error is not None and len(mistakes) == session.workers:
            raise error  # the user's mistake, which every worker has seen
        if error is not None and not isinstance(error, Exception):
            raise error  # of a signal's handler
        raise WorkerError(
            f"{session.name(worker)} failed {doing}: {failure.kind}: {failure.message}; nothing "
            "has changed, on no worker",
            worker=worker,
            closed=False,
        ) from error

"""A compiled model on several workers, with one logical cache."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path

from .._ffi import functions as ffi
from .._ffi.convert import to_path
from ..engine.compiled import runner as compiled
from ..engine.compiled.replay import ReplayingCache
from .cache import DistributedKVCache
from .calls import WorkerCalls
from .collectives import LIBRARIES, for_device
from .heads import heads_of
from .loading import has_recurrent_layers, load_model, num_shards
from .messages.journal import Journal
from .session import Session


class ModelRunner(compiled.ModelRunner):
    """A model on several workers: everything that :class:`kvctl.ModelRunner` is.

    The library is compiled for as many shards as there are workers (``kvctl compile
    --tensor-parallel``), or for one: then every worker runs the whole model, which is of use for
    tests alone. ``cache`` is one logical cache.

    A forward happens on all workers or on none. Where one fails, the others undo the step, and
    :class:`kvctl.distributed.WorkerError` names it. Where one dies or does not answer, the session
    is closed as well: its processes have ended, and this process may load another.

    Use it as a context, or call :meth:`close`.

    Examples
    --------
    >>> with kvctl.distributed.ModelRunner.load("Llama-3-8B-tp2", workers=2) as runner:
    ...     generation = kvctl.generate(runner, [prompt])
    """

    def __init__(
        self, session: Session, directory: str | PathLike[str], *, join_logits: bool = True
    ) -> None:
        self._session = session
        super().__init__(session.first.take_result(), directory)
        if isinstance(self._cache, ReplayingCache):
            raise NotImplementedError("models with recurrent layers run on one worker")
        journal = Journal()
        self._cache = DistributedKVCache(self._cache.handle, journal, session)
        splits = ffi.runner.get_logit_columns(self._handle) < self.vocab_size
        self._calls = WorkerCalls(
            session, journal, self._cache, self.vocab_size, join_logits=join_logits or not splits
        )
        heads = heads_of(Path(to_path(directory)), self._cache.num_kv_heads, session.workers)
        self._cache.use(self._calls, heads)

    @classmethod
    def load(  # type: ignore[override]
        cls,
        model_dir: str | PathLike[str],
        *,
        workers: int | None = None,
        hosts: Sequence[str] = (),
        port: int = 9090,
        collectives: str | None = None,
        threads: int | None = None,
        patience: float = 8.0,
        device: str = "cpu",
        max_sequences: int = 4,
        max_total_tokens: int | None = None,
        prefill_chunk_size: int | None = None,
        page_size: int = 16,
        kv_dtype: str | None = None,
        join_logits: bool = True,
    ) -> ModelRunner:
        """Start the workers and load the model on each.

        Parameters
        ----------
        model_dir : path-like
            A model directory.
        workers : int
            How many, 2 by default; the first is a thread of this process, the others are
            processes.
        hosts : sequence of str, optional
            The address of this machine and those of others, instead of `workers`: one worker on
            each. ``python -m kvctl.distributed.host ADDRESS PORT``, with this machine's address,
            runs on every other one, which has the model's directory under the same path.
        port : int
            Where this machine listens for the others; TVM's Disco takes the next one.
        collectives : {"gloo", "nccl"}, optional
            The library that connects them; by default NCCL for ``device="cuda"``, else Gloo.
        threads : int, optional
            OpenMP threads of each worker; by default the cores of this machine, shared out.
        patience : float
            Seconds of silence during a call after which a worker is given up.
        device : {"cpu", "cuda"}
            The type of their devices. On one machine worker i has device i of those that
            ``CUDA_VISIBLE_DEVICES`` leaves; with `hosts` each has the first one of its machine.
        max_sequences, max_total_tokens, prefill_chunk_size, page_size, kv_dtype
            As for :meth:`kvctl.ModelRunner.load`, on every worker.
        join_logits : bool
            Whether forwards return logits joined on the first worker, as tensors. If not, they stay
            on the workers: what is returned is a `kvctl.verification.ShardedLogits`, which
            ``kvctl.verify``, ``kvctl.sample`` and so ``kvctl.generate`` take.

        Raises
        ------
        ImportError
            If kvctl was built without these collectives.
        FileNotFoundError, ValueError, TypeError
            As :meth:`kvctl.ModelRunner.load`; and if the library was compiled for another number of
            shards.
        NotImplementedError
            If the model has recurrent layers.
        kvctl.distributed.WorkerError
            If a worker fails alone.
        """
        path = to_path(model_dir)
        if hosts and workers not in (None, len(hosts)):
            raise ValueError(f"workers is {workers}, and there are {len(hosts)} hosts")
        workers = len(hosts) or (2 if workers is None else workers)
        if ":" in device:
            raise ValueError(
                f"device is {device!r}: of several workers it names the type alone (cpu or cuda), "
                "and each has a device of its own"
            )
        library = for_device(device) if collectives is None else collectives
        if library in LIBRARIES and library != for_device(device):
            raise ValueError(f"collectives over {library} connect no workers on {device}")
        shards = num_shards(Path(path))
        if has_recurrent_layers(Path(path)):
            raise NotImplementedError(f"{path} has recurrent layers: such models run on one worker")
        if shards not in (1, workers):
            raise ValueError(
                f"{path} is compiled for {shards} workers (tensor_parallel_shards), not {workers}"
            )
        sizes = (
            compiled.at_least_one("max_sequences", max_sequences),
            compiled.at_least_one("max_total_tokens", max_total_tokens),
            compiled.at_least_one("prefill_chunk_size", prefill_chunk_size),
            page_size,
            *(16, 0, 1),  # of recurrent layers, which there are none
            int(shards > 1),
        )
        session = Session(
            workers,
            hosts=hosts,
            port=port,
            library=library,
            threads=threads,
            patience=patience,
        )
        try:
            load_model(session, str(Path(path).resolve()), device, kv_dtype or "", sizes)
            return cls(session, model_dir, join_logits=join_logits)
        except BaseException:
            session.close(kill=True)
            raise

    @property
    def workers(self) -> int:
        """How many workers run the model."""
        return self._session.workers

    @cached_property
    def identity(self) -> str:
        """A name for this model on its workers, under which what its rounds cost is remembered."""
        return f"{super().identity} workers={self.workers} threads={self._session.threads}"

    def close(self) -> None:
        """End the workers. The model cannot be called any more."""
        self._session.close()

    def __enter__(self) -> ModelRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, workers={self.workers})"

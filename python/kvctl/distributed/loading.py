"""A model's load on every worker of a session."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from .errors import WorkerError
from .messages.wire import LOAD
from .session import START_SECONDS, Session
from .worker_state import kernels_here


def num_shards(directory: Path) -> int:
    """Return for how many workers a model was compiled.

    Raises
    ------
    FileNotFoundError
        If the directory has no model.
    """
    file = directory / "mlc-chat-config.json"
    if not file.exists():
        raise FileNotFoundError(f"{directory} is no model directory: there is no {file.name}")
    config = json.loads(file.read_text())
    return int(config.get("tensor_parallel_shards") or 1) if isinstance(config, dict) else 1


def has_recurrent_layers(directory: Path) -> bool:
    """Return whether a model's configuration tells of recurrent layers.

    Not every one does; where it does not, the library does when it is loaded.
    """
    config = json.loads((directory / "mlc-chat-config.json").read_text())
    kind = config.get("model_type") if isinstance(config, dict) else None
    return isinstance(kind, str) and kind.startswith(("gated_delta_net", "rwkv"))


def load_model(
    session: Session, directory: str, device: str, kv_dtype: str, sizes: Sequence[int]
) -> None:
    """Load a model on every worker; :meth:`kvctl.distributed.worker_state.Worker.load`.

    Raises
    ------
    WorkerError
        If a worker fails alone; or as the load of a model raises.
    """
    reports = session.call(
        LOAD,
        json.dumps(
            [directory, device, kv_dtype, list(sizes), session.threads, kernels_here()]
        ).encode(),
        patience=START_SECONDS,
        doing="while it loaded the model",
    )
    if reports.failures:
        worker, failure = reports.cause()
        if session.first.error is not None and worker == 0:
            raise session.first.error
        raise WorkerError(
            f"{session.name(worker)} could not load its part of the model: {failure.kind}: "
            f"{failure.message}",
            worker=worker,
            closed=True,
        )

"""A mode that finds infinities and NaN where they come into being."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ._ffi import functions as ffi


@contextmanager
def checking(on: bool = True) -> Iterator[None]:
    """Check values inside the block: K and V when attention writes them, logits when they come.

    A cache in host memory then refuses new K and V that are not finite in the type of its pages: a
    key of 1e5 is infinite in float16, and would make NaN of later logits. The error names the
    layer, the sequence and the position; the step can be aborted. :func:`kvctl.verify` and
    :func:`kvctl.sample` refuse NaN and infinity in logits (-inf forbids a token, and may be there).

    The mode is the process's; ``KVCTL_CHECK=1`` in the environment turns it on from the start.
    Caches in CUDA memory refuse to begin a step in it.

    Parameters
    ----------
    on : bool, optional
        False turns checks off inside the block.

    Examples
    --------
    >>> with kvctl.checking():
    ...     logits = runner.prefill([0], [prompt])
    """
    before = ffi.checking.set(bool(on))
    try:
        yield
    finally:
        ffi.checking.set(before)

"""Drawing drafts, with the distribution they were drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm_ffi

from .._ffi import functions as ffi
from .._ffi.integers import one_int32
from ..verification.flatten import DRAWN, kind, matrix_shape, one_for_each, signed, streams, tensor
from ..verification.sampling import Sampling, per_request


@dataclass(frozen=True)
class DraftSample:
    """Drawn tokens and their distribution.

    Attributes
    ----------
    tokens : numpy.ndarray
        (R, n) int32, the tokens drawn from each row in draw order; -1 where the support of a row
        was exhausted and drawing stopped.
    probs : numpy.ndarray
        (R, V) float32 or float64, the distribution each row's tokens were drawn from: what
        ``kvctl.verify(draft_probs=...)`` wants as the row of their parent. A tensor on the device
        of the logits if that is CUDA's.
    drawn : str
        How they were drawn: what ``kvctl.verify(drawn=...)`` wants.
    """

    tokens: npt.NDArray[np.int32]
    probs: Any
    drawn: str


def sample(
    logits: Any,
    *,
    how: str,
    n: int = 1,
    sampling: Sampling | Sequence[Sampling] | None = None,
    seed: int = 0,
    request_ids: Sequence[int] | None = None,
    root_positions: Sequence[int] | int | None = None,
    first_nodes: Sequence[int] | int = 1,
    depths: Sequence[int] | int | None = None,
    dtype: npt.DTypeLike = np.float32,
    bitmask: Any = None,
) -> DraftSample:
    """Draw n siblings from each row of a drafter's logits, and return them with their distribution.

    The distribution is what makes verification lossless: tokens are drawn from the very numbers
    returned, after rounding to `dtype`.

    Parameters
    ----------
    logits
        (R, V) float32, float16 or bfloat16: the drafter's logits after each node to extend, on the
        host or on a CUDA device, where they are drawn from alike.
    how
        ``independent``, ``without_replacement``, ``coupled`` (argmax of log q plus the noise of
        the token's position, which ``rule="coupled"`` uses too) or ``deterministic`` (the most
        likely).
    n
        Siblings per row.
    sampling
        One for all or one for each row; its own, not the target's. Penalties are not applied.
    seed, request_ids, root_positions
        As in ``kvctl.verify``, one entry per row: the request and the position of the root of
        the tree that is being drafted.
    first_nodes
        The index that the first token drawn from each row will have in its tree; it tells the
        draws of one round apart.
    depths
        The depth of the tokens drawn, for ``coupled``; by default `first_nodes`, as in a chain.
    dtype
        float32 or float64, of the distribution.
    bitmask
        (R, W) int32, the tokens allowed after each row, as in ``kvctl.verify``. Verification
        rejects whatever its own mask forbids.

    Returns
    -------
    DraftSample

    Raises
    ------
    ValueError
        If a row leaves no token, or random numbers are not named.
    """
    logits = tensor(logits, "logits")
    rows, vocab = matrix_shape(logits, "logits")
    n = one_int32(n, "n")
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    request = ffi.verify.new_draft_request()
    request.how = kind(how, DRAWN, "how")
    request.logits = logits
    request.sampling = [one.params() for one in per_request(sampling, Sampling())]
    if bitmask is not None:
        request.bitmask = tensor(bitmask, "bitmask")
    request.seed = signed(seed)
    ids: Any
    positions: Any
    random = how != "deterministic"
    ids, positions = streams(rows, request_ids, root_positions, "root_positions", random=random)
    request.request_ids, request.root_positions = ids, positions
    firsts: Any = one_for_each(first_nodes, rows, "first_nodes")
    request.first_nodes = firsts
    if depths is not None:
        own: Any = one_for_each(depths, rows, "depths")
        request.depths = own
    tokens: Any = np.empty((rows, n), np.int32)
    if logits.__dlpack_device__()[0] == tvm_ffi.DLDeviceType.kDLCUDA:
        on_device = ffi.verify.draft_on_device(request, tokens, tvm_ffi.dtype(np.dtype(dtype).name))
        return DraftSample(tokens, on_device, how)
    probs: Any = np.empty((rows, vocab), dtype)
    ffi.verify.draft(request, tokens, probs)
    return DraftSample(tokens, probs, how)

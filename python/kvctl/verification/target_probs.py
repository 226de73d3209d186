"""The target's distribution as verification sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .._ffi import functions as ffi
from ..tree import TokenTree, as_trees
from .flatten import RULES, matrix_shape, tensor
from .request import set_history, set_target, set_trees
from .sampling import Sampling, per_request

Float64 = npt.NDArray[np.float64]


def target_probs(
    logits: Any,
    sampling: Sampling | Sequence[Sampling] | None = None,
    *,
    trees: TokenTree | Sequence[TokenTree] | None = None,
    history: Sequence[Sequence[int]] | None = None,
    bitmask: Any = None,
    probabilities: bool = False,
    check: bool = True,
) -> Float64:
    """Return the distributions that tokens are sampled from: the numbers that verification uses.

    Logit bias, penalties, bitmask, temperature, top-k, top-p and min-p are applied. At temperature
    0 a distribution is 1 for one token.

    Parameters
    ----------
    logits
        (R, V), as in ``kvctl.verify``.
    sampling
        One for all, or one for each sequence; by default the model's softmax.
    trees
        The drafted trees that the logits follow, for penalties, stop tokens and the order of rows.
        Without them each row is a sequence of its own.
    history, bitmask, probabilities
        As in ``kvctl.verify``, or without trees as in ``kvctl.sample``.
    check
        Whether a row that leaves no token is an error. Otherwise its distribution is 0 throughout.

    Returns
    -------
    numpy.ndarray
        (N, V) float64, one row for each node of the trees, or (R, V). After a drafted stop token
        it is 0 throughout: nothing follows.

    Raises
    ------
    ValueError
        If shapes do not fit, or a row leaves no token and `check` is set.
    """
    request = ffi.verify.new_request()
    request.rule = RULES.index("target_only")
    logits = tensor(logits, "logits")
    size, vocab = matrix_shape(logits, "logits")
    nodes = size
    if trees is not None:
        trees = as_trees(trees)
        size, nodes = len(trees), sum(map(len, trees))
        set_trees(request, trees, "deterministic")
    set_history(request, history, size)
    samplings = per_request(sampling, Sampling())
    set_target(request, logits, samplings, bitmask=bitmask, probabilities=probabilities)
    out: Any = np.empty((nodes, vocab))
    ffi.verify.get_target_probs(request, not check, out)
    probs: Float64 = out
    return probs

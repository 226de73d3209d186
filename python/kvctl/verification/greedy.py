"""Greedy verification of logits without anything else, which few microseconds are much of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._ffi import functions as ffi
from ..tree import TokenTree, encode_trees
from .flatten import DRAWN, kind, tensor
from .result import Verification


def are_plain_names(
    size: int,
    seed: int,
    request_ids: Sequence[int] | None,
    root_positions: Sequence[int] | int | None,
) -> bool:
    """Return whether what names random numbers is given as short lists without a mistake.

    Greedy verification draws none, so that it need not convert them.
    """
    if type(seed) is not int or not 0 <= seed < 2**63:
        return False
    for names in (request_ids, root_positions):
        if names is None:
            continue
        if type(names) is not list or len(names) != size:
            return False
        for name in names:
            if type(name) is not int or not 0 <= name < 2**31:
                return False
    return True


def verify_greedily(logits: Any, trees: list[TokenTree], drawn: str) -> Verification:
    """Verify trees by rule ``greedy`` at temperature 0, as `kvctl.verify` does.

    Raises
    ------
    ValueError
        As `kvctl.verify`.
    """
    code: Any
    code, begins = encode_trees(trees)
    out: Any = np.empty(3 * int(begins[0, -1]) + 4 * len(trees), np.int32)
    ffi.verify.run_greedy(code, kind(drawn, DRAWN, "drawn"), tensor(logits, "logits"), out)
    return Verification(trees, begins, out, None, lossless=True)

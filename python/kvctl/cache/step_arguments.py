"""The arguments of a step, ``mask`` and ``pending``, as FFI functions take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ..mask import Mask
from ..tree import TokenTree

if TYPE_CHECKING:
    from tvm_ffi import Tensor

MaskLike: TypeAlias = Mask | TokenTree


def encode_pending(pending: bool | None) -> int:
    """Return whether new tokens are pending as FFI functions take it: -1 where the mask says so.

    Raises
    ------
    TypeError
        If it is something else than True, False and None.
    """
    if pending is not None and not isinstance(pending, bool | np.bool_):
        raise TypeError(f"pending must be True, False or None, got {pending!r}")
    return -1 if pending is None else int(pending)


def encode_masks(
    mask: MaskLike | Sequence[MaskLike | None] | None,
) -> list[Tensor | None] | None:
    """Return one mask, or one per sequence, as FFI functions take them.

    Raises
    ------
    TypeError
        If something is no mask.
    """
    if mask is None:
        return None
    many = list(mask) if isinstance(mask, (list, tuple)) else [mask]
    return [None if one is None else _encode_mask(one) for one in many]


def _encode_mask(mask: object) -> Tensor:
    if isinstance(mask, TokenTree):
        mask = mask.mask()
    if not isinstance(mask, Mask):
        raise TypeError(
            f"a mask must be a kvctl.Mask or a kvctl.TokenTree, got {type(mask).__name__}; "
            "Mask.full and Mask.dense take boolean arrays, Mask.tree takes parents"
        )
    return mask.__tvm_ffi_value__()

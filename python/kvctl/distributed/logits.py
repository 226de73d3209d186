"""Logits that stay on the workers."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import tvm_ffi

from .._ffi.convert import to_numpy

if TYPE_CHECKING:
    from .messages.program import Kept

Ask = Callable[..., Any]
"""Runs a function of `program.FUNCTIONS` on all workers, for what each has kept."""


class SplitLogits:
    """Rows (R, V) of logits of which every worker keeps its columns.

    ``kvctl.verify`` and ``kvctl.sample`` take them as they are, and join them where they must (see
    :class:`kvctl.verification.ShardedLogits`). As a DLPack tensor they are the joined rows.
    """

    def __init__(self, shape: tuple[int, int], kept: Kept, ask: Ask, forget: Any) -> None:
        self.shape = shape
        self._kept, self._ask = kept, ask
        self._joined: Any = None
        weakref.finalize(self, forget, kept).atexit = False

    def gather(self) -> Any:
        """Return the joined rows."""
        if self._joined is None:
            self._joined = self._ask("join_kept", self._kept)
        return self._joined

    def tokens(
        self,
        temperatures: npt.NDArray[np.float64],
        seed: int,
        request_ids: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.int32]:
        """Return the token that is sampled from each row; see `ShardedLogits`."""
        names = [tvm_ffi.Shape(tuple(one.tolist())) for one in (request_ids, positions)]
        bits = tvm_ffi.Shape(tuple(temperatures.view(np.int64).tolist()))
        found: npt.NDArray[np.int32] = to_numpy(
            self._ask("sample_kept", self._kept, bits, seed, *names)
        )
        return found

    def numpy(self) -> npt.NDArray[np.float32]:
        """Return the joined rows as an array."""
        array: npt.NDArray[np.float32] = to_numpy(self.gather())
        return array

    def __dlpack__(self, **options: Any) -> Any:
        return self.numpy().__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.numpy().__dlpack_device__()

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"SplitLogits(shape={self.shape})"

"""Arrays that a drafter is given, wherever they lie."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def as_array(values: Any) -> Any:
    """Return an array that can be indexed: as it is, or a view or copy on the host."""
    if hasattr(values, "__getitem__"):
        return values
    return to_host(values)


def to_host(values: Any) -> npt.NDArray[Any]:
    """Return an array on the host, without a copy if it is there."""
    if isinstance(values, np.ndarray):
        return values
    if hasattr(values, "__dlpack_device__") and values.__dlpack_device__()[0] != 1:
        values = values.cpu() if hasattr(values, "cpu") else values.numpy()
    return np.from_dlpack(values)

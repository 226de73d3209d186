"""A vocabulary that is a part of the target's."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..._ffi.integers import to_int32


class DraftVocabulary:
    """Which of the target's tokens a drafting model knows.

    Parameters
    ----------
    token_ids
        (k,) integers, the target's token of each of the model's, all different.
    target_size
        Length of a row of the target's logits.

    Raises
    ------
    ValueError
        If a token is not one of the target's, or is there twice.
    """

    def __init__(self, token_ids: npt.ArrayLike, target_size: int) -> None:
        ids = to_int32(token_ids, "token_ids", ndim=1)
        outside = ids[(ids < 0) | (ids >= target_size)]
        if outside.size:
            raise ValueError(
                f"the draft vocabulary has token {outside[0]}; the target's are 0 to "
                f"{target_size - 1}"
            )
        values, counts = np.unique(ids, return_counts=True)
        if (counts > 1).any():
            raise ValueError(f"the draft vocabulary has token {values[counts > 1][0]} twice")
        self.token_ids, self.target_size = ids, target_size
        self._own = {token: own for own, token in enumerate(ids.tolist())}

    def __len__(self) -> int:
        return len(self.token_ids)

    def tokens(self, own: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Return the target's tokens of the model's."""
        return np.asarray(self.token_ids[own])

    def own(self, token: int) -> int | None:
        """Return the model's token of one of the target's; None where it has none."""
        return self._own.get(token)

    def logits(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return rows (n, k) as rows (n, target_size): minus infinity for all other tokens."""
        wide = np.full((len(rows), self.target_size), -np.inf, np.float32)
        wide[:, self.token_ids] = rows
        return wide

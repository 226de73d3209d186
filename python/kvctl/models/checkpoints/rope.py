"""The frequencies of rotary position embeddings, scaled as models do it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

KINDS = ("llama3", "yarn", "longrope", "divisors")


@dataclass(frozen=True)
class RopeScaling:
    """How a model stretches RoPE to a longer context; linear scaling is `rope_scale` instead.

    Parameters
    ----------
    kind : str
        "llama3" (Llama 3.1), "yarn" (arXiv:2309.00071), "longrope" (arXiv:2402.13753), or
        "divisors": every frequency is divided by a number of its own.
    factor : float
        How much longer the context is (llama3, yarn).
    original_context : int
        The context of before, in tokens (llama3, yarn, longrope).
    low_freq_factor, high_freq_factor : float
        Rotations within the original context below and above which llama3 stretches all or none.
    beta_fast, beta_slow : float
        The same for yarn, fast first.
    truncate : bool
        Whether yarn rounds the dimensions between which it interpolates.
    attention_factor : float
        Multiplies cosines and sines.
    short, long : tuple of float
        Divisors of the frequencies: `long` where the context window is longer than the original
        one, `short` where it is not ("divisors" has only `short`).

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    kind: str
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"scaling of RoPE is one of {', '.join(KINDS)}, not '{self.kind}'")
        for name in ("factor", "attention_factor", "low_freq_factor", "beta_fast", "beta_slow"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"RoPE's {name} must be positive and finite, not {value}")
        if self.kind == "llama3" and not self.low_freq_factor < self.high_freq_factor < math.inf:
            raise ValueError(
                f"RoPE's high_freq_factor must be above low_freq_factor {self.low_freq_factor}, "
                f"not {self.high_freq_factor}"
            )
        if self.kind != "divisors" and self.original_context < 1:
            raise ValueError(
                f"RoPE's original context must be at least 1, not {self.original_context}"
            )
        if any(not 0 < one < math.inf for one in (*self.short, *self.long)):
            raise ValueError("RoPE's factors of single frequencies must be positive and finite")

    def scale(
        self, frequencies: npt.NDArray[np.float64], *, theta: float, context: int
    ) -> npt.NDArray[np.float64]:
        """Return the scaled frequencies.

        Parameters
        ----------
        frequencies : ndarray of float64
            (rotary_dim / 2,) angles of position 1.
        theta : float
            Their base.
        context : int
            The context window of the model as it is compiled.
        """
        if self.kind == "llama3":
            return self._llama3(frequencies)
        if self.kind == "yarn":
            return self._yarn(frequencies, theta)
        longer = self.kind == "longrope" and context > self.original_context
        divisors = np.array(self.long if longer else self.short, np.float64)
        scaled: npt.NDArray[np.float64] = frequencies / divisors
        return scaled

    def _llama3(self, frequencies: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        rotations = self.original_context * frequencies / (2 * math.pi)
        low, high = self.low_freq_factor, self.high_freq_factor
        keep = np.clip((rotations - low) / (high - low), 0.0, 1.0)
        scaled: npt.NDArray[np.float64] = frequencies * ((1 - keep) / self.factor + keep)
        return scaled

    def _yarn(self, frequencies: npt.NDArray[np.float64], theta: float) -> npt.NDArray[np.float64]:
        half = len(frequencies)

        def dimension(rotations: float) -> float:
            turns = self.original_context / (rotations * 2 * math.pi)
            return half * math.log(turns) / math.log(theta)

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = float(math.floor(low)), float(math.ceil(high))
        low, high = max(low, 0.0), min(high, 2.0 * half - 1)
        if low == high:
            high += 0.001
        stretch = np.clip((np.arange(half) - low) / (high - low), 0.0, 1.0)
        scaled: npt.NDArray[np.float64] = frequencies * (stretch / self.factor + (1 - stretch))
        return scaled


def yarn_attention_factor(factor: float) -> float:
    """Return what YaRN multiplies cosines and sines by, unless a model says otherwise."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


def longrope_attention_factor(factor: float, original_context: int) -> float:
    """Return what LongRoPE multiplies cosines and sines by, unless a model says otherwise."""
    if factor <= 1 or original_context <= 1:
        return 1.0
    return math.sqrt(1 + math.log(factor) / math.log(original_context))

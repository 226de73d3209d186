"""How tokens are sampled from logits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from numbers import Real
from operator import index
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .._ffi import functions as ffi
from .._ffi.integers import to_int32

Ragged: TypeAlias = tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]] | tuple[None, None]

_INT64_MAX = 2**63 - 1
_PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The sampling parameters of one request. The defaults are the model's own softmax.

    They apply to the target's logits, in this order: `logit_bias`; the three penalties;
    the bitmask given to ``kvctl.verify``; `temperature`; `top_k`; `top_p`; `min_p`. NaN counts as
    minus infinity. Where a logit is plus infinity, the tokens that have the largest logit share
    the row equally. A row that leaves no token at all is an error.

    Parameters
    ----------
    temperature
        At least 0; 0 takes the largest logit, the first of equals.
    top_k
        Keeps the k most likely tokens; 0 keeps all.
    top_p
        Then keeps the fewest of the most likely whose share of what is left reaches top_p.
    min_p
        Then keeps those at least min_p times as likely as the likeliest.
    repetition_penalty
        Divides positive logits of tokens seen before, multiplies negative ones.
    presence_penalty
        Is subtracted from the logit of every token seen before.
    frequency_penalty
        Is subtracted once for each time it was seen.
    logit_bias
        Token to what is added to its logit.
    stop_tokens
        Output ends with the first of these.

    Notes
    -----
    Tokens seen before are those of the request's history, the root, and the path to the node.
    Ties at the edge of top-k and top-p go to the lower token id.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop_tokens: Sequence[int] = ()

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "min_p", *_PENALTIES):
            if not isinstance(value := getattr(self, name), Real):
                raise TypeError(f"{name} must be a number, got {value!r}")
        if not hasattr(self.top_k, "__index__"):
            raise TypeError(f"top_k must be an integer, got {self.top_k!r}")
        if not isinstance(self.logit_bias, Mapping):
            raise TypeError(f"logit_bias must map tokens to numbers, got {self.logit_bias!r}")

    def params(self) -> ffi.SamplingParams:
        """Return the parameters as libkvctl takes them.

        Raises
        ------
        TypeError, ValueError
            If tokens of `logit_bias` or `stop_tokens` are not integers of 32 bits.
        """
        if not hasattr(self.stop_tokens, "__len__"):
            raise TypeError(f"stop_tokens must be a sequence of integers, got {self.stop_tokens!r}")
        if not self.logit_bias and not len(self.stop_tokens):
            return self._numbers
        params = self._new_params()
        if self.logit_bias:
            params.bias_tokens = _tensor(to_int32(tuple(self.logit_bias), "tokens of logit_bias"))
            params.bias_values = _tensor(np.array(list(self.logit_bias.values()), np.float32))
        if len(self.stop_tokens):
            params.stop_tokens = _tensor(to_int32(self.stop_tokens, "stop_tokens", ordered=False))
        return params

    @cached_property
    def _numbers(self) -> ffi.SamplingParams:
        """The parameters without logit_bias and stop_tokens, which the caller may change."""
        return self._new_params()

    def _new_params(self) -> ffi.SamplingParams:
        params = ffi.verify.new_sampling()
        for name in ("temperature", "top_p", "min_p", *_PENALTIES):
            setattr(params, name, float(getattr(self, name)))
        params.top_k = max(-1, min(index(self.top_k), _INT64_MAX))
        return params

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields alone: objects of the FFI are made anew."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}


def _tensor(array: Any) -> Any:
    """Return an array as the type checker takes it: the FFI makes a tensor of it."""
    return array


def per_request(value: Sampling | Sequence[Sampling] | None, default: Sampling) -> list[Sampling]:
    """Return the sampling parameters as a list: of one for all, or of one each."""
    if value is None:
        return [default]
    many = [value] if isinstance(value, Sampling) else value
    if not isinstance(many, Sequence):
        raise TypeError(f"sampling must be kvctl.Sampling, got {type(value).__name__}")
    for one in many:
        if not isinstance(one, Sampling):
            raise TypeError(f"sampling must be kvctl.Sampling, got {type(one).__name__}")
    if not many:
        raise ValueError("sampling parameters must be one for all or one for each, got none")
    return list(many)


def ragged(lists: Sequence[Collection[int]], name: str) -> Ragged:
    """Return lists of integers as where each begins, (n + 1,), and all their values.

    None where all of them are empty.
    """
    for values in lists:
        if not hasattr(values, "__len__"):
            raise TypeError(f"{name} must be a sequence of integers, got {values!r}")
    if not any(map(len, lists)):
        return None, None
    begins = np.zeros(len(lists) + 1, np.int64)
    np.cumsum([len(values) for values in lists], out=begins[1:])
    return begins, np.concatenate([to_int32(values, name) for values in lists])

"""What a coarser type of K and V would change: logits, choices, and the acceptance of drafts.

Where the cache has the other type, the same model runs on such a cache. Where it has not, the cache
keeps float32: after every forward the new K and V are rounded to the other type and written back,
so that each later token reads what such a cache would hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from .._ffi import functions as ffi
from .._ffi.convert import to_numpy, to_tensor
from ..cache.sequence_file import NUMBERS
from .differences import difference

if TYPE_CHECKING:
    from ..engine.protocol import Runner

Float32 = npt.NDArray[np.float32]
_SEQUENCE = 0


def _cast(dtype: npt.DTypeLike) -> Callable[[Float32], Float32]:
    def rounded(values: Float32) -> Float32:
        limit = float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
        found: Float32 = np.clip(values, -limit, limit).astype(dtype).astype(np.float32)
        return found

    return rounded


def _int8(values: Float32) -> Float32:
    """Round to 8-bit integers with a scale for each token and head."""
    scale = np.abs(values).max(axis=-1, keepdims=True) / 127.0
    scale = np.where(scale > 0, scale, 1.0)
    found: Float32 = (np.rint(values / scale) * scale).astype(np.float32)
    return found


#: The types that can be tried, and how values are rounded to them; the last axis is the head's.
KV_DTYPES: dict[str, Callable[[Float32], Float32]] = {
    "float16": _cast(np.float16),
    "bfloat16": _cast(ml_dtypes.bfloat16),
    "float8_e4m3": _cast(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": _cast(ml_dtypes.float8_e5m2),
    "int8": _int8,
}


#: Those of them that a cache can have.
CACHE_DTYPES = ("float16", "bfloat16", "int8")


@dataclass(frozen=True)
class KvReport:
    """What a type of K and V changes over a text.

    Attributes
    ----------
    dtype : str
        One of `KV_DTYPES`.
    in_cache : bool
        Whether a cache held that type; else the values of a float32 cache were rounded.
    tokens : int
        Positions that were compared.
    max_error, mean_error : float
        Of a logit.
    same_choice : float
        Share of the positions whose most probable token is the same.
    acceptance : float
        Mean probability that a draft of the one is accepted by the other: the sum over tokens of
        the smaller probability.
    """

    dtype: str
    in_cache: bool
    tokens: int
    max_error: float
    mean_error: float
    same_choice: float
    acceptance: float


def check_kv(
    runner: Runner,
    prompts: Sequence[Sequence[int]],
    dtype: str,
    *,
    coarser: Runner | None = None,
    new_tokens: int = 32,
    temperature: float = 1.0,
) -> KvReport:
    """Compare greedy texts of the cache's own type with the same texts on rounded K and V.

    Parameters
    ----------
    runner
        The model; its cache must hold K and V in float32.
    prompts
        Tokens of the prompts.
    dtype
        One of `KV_DTYPES`.
    coarser
        The same model on a cache of that type; without it, K and V are rounded.
    new_tokens
        Of each text. The rounded run is given the same tokens, so that positions compare.
    temperature
        Of the distributions whose acceptance is reported.

    Raises
    ------
    ValueError
        If there is no such type, no prompt, a number is out of its range, or a cache holds another
        type than it must.
    NotImplementedError
        If the model keeps its state elsewhere than in a `kvctl.PagedKVCache`.
    """
    if dtype not in KV_DTYPES:
        raise ValueError(f"the type of K and V is one of {', '.join(KV_DTYPES)}; got {dtype!r}")
    if not prompts:
        raise ValueError("there is no prompt")
    if not temperature > 0:
        raise ValueError(f"the temperature of the acceptance must be above 0, got {temperature}")
    if new_tokens < 1:
        raise ValueError(f"new_tokens must be at least 1, got {new_tokens}")
    cache: Any = runner.cache
    if not hasattr(cache, "get_kv"):
        raise NotImplementedError("a model with recurrent layers keeps state that is no K and V")
    if cache.dtype != "float32":
        raise ValueError(f"the cache must hold float32, to round from; it holds {cache.dtype}")
    if coarser is not None and coarser.cache.dtype != dtype:  # type: ignore[attr-defined]
        found = coarser.cache.dtype  # type: ignore[attr-defined]
        raise ValueError(f"the coarser runner's cache must hold {dtype}, it holds {found}")
    own, other = [], []
    rounding = KV_DTYPES[dtype] if coarser is None else None
    for prompt in prompts:
        text = list(prompt)
        first = _logits(runner, text, new_tokens, None, [])
        emitted = [int(row.argmax()) for row in first]
        own.append(first)
        other.append(_logits(coarser or runner, text, new_tokens, rounding, emitted))
    exact, rounded = np.concatenate(own), np.concatenate(other)
    error = difference(exact, rounded)
    p, q = _softmax(exact / temperature), _softmax(rounded / temperature)
    return KvReport(
        dtype,
        coarser is not None,
        len(exact),
        float(error.max()),
        float(error.mean()),
        float((exact.argmax(axis=1) == rounded.argmax(axis=1)).mean()),
        float(np.minimum(p, q).sum(axis=1).mean()),
    )


def _logits(
    runner: Runner,
    prompt: Sequence[int],
    new_tokens: int,
    rounded: Callable[[Float32], Float32] | None,
    given: Sequence[int],
) -> Float32:
    """Return the logits behind the prompt and each new token; greedy tokens unless given."""
    cache = runner.cache
    cache.add_sequence(_SEQUENCE)
    try:
        rows = [_row(runner.prefill([_SEQUENCE], [prompt]))]
        for i in range(new_tokens - 1):
            if rounded is not None:
                _round(cache, rounded, 0 if i == 0 else len(prompt) + i - 1)
            token = given[i] if given else int(rows[-1].argmax())
            rows.append(_row(runner.decode([_SEQUENCE], [token])))
        return np.stack(rows)
    finally:
        cache.remove_sequence(_SEQUENCE)


def _row(logits: Any) -> Float32:
    row: Float32 = np.array(to_numpy(logits), np.float32)[0]
    return row


def _round(cache: Any, rounded: Callable[[Float32], Float32], begin: int) -> None:
    """Round K and V of the tokens from `begin` on."""
    saved = ffi.cache.save_sequence(cache._handle, _SEQUENCE)
    k, v = (np.array(to_numpy(part)) for part in (saved.k, saved.v))
    for part in (k, v):
        values = part.view(np.float32)  # (layers, tokens, heads, head_dim)
        values[:, begin:] = rounded(values[:, begin:])
    numbers: dict[str, Any] = {field: getattr(saved, field) for field in NUMBERS.values()}
    record = ffi.SavedSequenceRecord(
        **numbers, positions=saved.positions, k=to_tensor(k), v=to_tensor(v)
    )
    cache.remove_sequence(_SEQUENCE)
    ffi.cache.load_sequence(cache._handle, _SEQUENCE, record)


def _softmax(logits: Float32) -> npt.NDArray[np.float64]:
    values = logits.astype(np.float64)
    weights = np.exp(values - values.max(axis=1, keepdims=True))
    probs: npt.NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return probs

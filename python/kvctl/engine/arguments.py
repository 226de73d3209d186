"""What `generate` was asked for, as one entry for each text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields
from functools import partial
from operator import index
from typing import TYPE_CHECKING, Any

from .._ffi.integers import to_int64
from ..text import TextStream
from ..verification import Sampling
from ..verification.flatten import signed
from .loop_checks import check_prompt

if TYPE_CHECKING:
    from .protocol import Runner

Prompt = Sequence[int]
StopWhen = Callable[[int], bool]


@dataclass(frozen=True, kw_only=True)
class FixedSampling(Sampling):
    """Sampling parameters that nobody changes any more, converted for libkvctl once."""

    def params(self) -> Any:
        """Return the parameters as libkvctl takes them."""
        params = self.__dict__.get("_params")
        if params is None:
            params = self.__dict__["_params"] = super().params()
        return params

    @property
    def penalizes(self) -> bool:
        """Whether the tokens so far change the logits."""
        penalties = (self.presence_penalty, self.frequency_penalty)
        return self.repetition_penalty != 1.0 or any(penalties)


@dataclass(frozen=True)
class TextArguments:
    """What one text was asked for."""

    prompt: list[int]
    max_new_tokens: int
    sampling: FixedSampling
    seed: int
    request_id: int
    seq_id: int
    stop: frozenset[int]
    #: Called with each new token in order; whether the text ends with it.
    ends: tuple[StopWhen, ...]
    on_tokens: Callable[[list[int]], None] | None


def text_arguments(
    runner: Runner,
    prompts: Any,
    *,
    max_new_tokens: Any,
    sampling: Any,
    seed: Any,
    request_id: Any,
    seq_id: int,
    stop: Collection[int],
    stop_strings: Sequence[str],
    stop_when: Any,
    on_tokens: Any,
) -> tuple[list[TextArguments], bool]:
    """Return the arguments of each text, and whether there is one prompt and not a list of them.

    Raises
    ------
    ValueError, TypeError
        As `kvctl.generate`.
    """
    one = not _is_list_of_prompts(prompts)
    many = [prompts] if one else list(prompts)
    size = len(many)
    names = ["prompts"] if one else [f"prompts[{i}]" for i in range(size)]
    tokens = [to_int64(p, name).tolist() for p, name in zip(many, names, strict=True)]
    lengths = [index(n) for n in _each(max_new_tokens, size, "max_new_tokens")]
    for prompt, length in zip(tokens, lengths, strict=True):
        check_prompt(runner, prompt, length)
    stops = frozenset(to_int64(stop, "stop", ordered=False).tolist())
    samplings = [_fixed(s, stops, runner) for s in _each(sampling, size, "sampling")]
    seeds = [signed(s) for s in _each(seed, size, "seed")]
    if isinstance(request_id, Sequence):
        ids = [signed(i) for i in _each(request_id, size, "request_id")]
    else:
        ids = [signed(index(request_id) + i) for i in range(size)]
    conditions = [stop_when] if one or stop_when is None else _each(stop_when, size, "stop_when")
    if stop_strings:
        _streams(runner, stop_strings, 1)
    streams = _streams(runner, stop_strings, size) if stop_strings else [()] * size
    out = []
    for i in range(size):
        asked = conditions[i if len(conditions) > 1 else 0]
        ends = streams[i] if asked is None else (asked, *streams[i])
        callback = on_tokens if one or on_tokens is None else partial(on_tokens, i)
        own_stops = stops | frozenset(samplings[i][1])
        out.append(
            TextArguments(
                tokens[i],
                lengths[i],
                samplings[i][0],
                seeds[i],
                ids[i],
                index(seq_id) + i,
                own_stops,
                ends,
                callback,
            )
        )
    return out, one


def _is_list_of_prompts(prompts: Any) -> bool:
    """Return whether the elements of a sequence are sequences themselves."""
    if isinstance(prompts, str):
        return False
    shape = getattr(prompts, "shape", None)
    if shape is not None:
        return len(shape) > 1
    if not isinstance(prompts, Sequence) or len(prompts) == 0:
        return False
    first = prompts[0]
    return hasattr(first, "__len__") and getattr(first, "shape", None) != ()


def _each(value: Any, size: int, name: str) -> list[Any]:
    """Return one value for each text, of which there may be one for all.

    Raises
    ------
    ValueError
        If there is another number of them.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        return [value] * size
    if len(value) != size:
        raise ValueError(f"{name} needs one entry for each of {size} prompts, got {len(value)}")
    return list(value)


def _fixed(
    sampling: Any, stop: frozenset[int], runner: Runner
) -> tuple[FixedSampling, frozenset[int]]:
    """Return a text's sampling with all its stop tokens, and the stop tokens of its own."""
    if sampling is None:
        sampling = Sampling(temperature=0.0)
    if not isinstance(sampling, Sampling):
        raise TypeError(f"sampling must be kvctl.Sampling, got {type(sampling).__name__}")
    own = frozenset(to_int64(sampling.stop_tokens, "stop_tokens", ordered=False).tolist())
    # Ids outside the vocabulary are never emitted.
    tokens = sorted(token for token in stop | own if 0 <= token < runner.vocab_size)
    values = {entry.name: getattr(sampling, entry.name) for entry in fields(sampling)}
    values |= {"stop_tokens": tuple(tokens), "logit_bias": dict(sampling.logit_bias)}
    return FixedSampling(**values), own


def _streams(runner: Runner, stop_strings: Sequence[str], size: int) -> list[tuple[StopWhen, ...]]:
    """Return for each text what finds stop strings in it."""
    tokenizer = runner.text.tokenizer

    def check(stream: TextStream) -> StopWhen:
        def ends(token: int) -> bool:
            stream.push(token)
            return stream.stopped_by is not None

        return ends

    return [(check(TextStream(tokenizer, stop_strings=stop_strings)),) for _ in range(size)]

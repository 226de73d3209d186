"""A model's step as CUDA graphs: captured once for each shape, replayed in later steps."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from .._ffi import functions as ffi
from ..cache import PagedKVCache
from .recorder import Recorder, Recording


class _GraphState(NamedTuple):
    """What C++'s ``kvctl::GraphState`` says of the step in flight."""

    num_new_tokens: int
    item_rows: int
    generation: int
    num_captured: int
    stream: int


class StepGraph:
    """Captures the forward of a model as CUDA graphs, and replays them.

    Call it in a step of the cache, in place of the model. A step is captured the first time that
    one of its shape runs, and replayed whenever another of that shape does. The shape is: the
    number of new tokens, whether the sequences have up to 16, up to 32 or more rows for a KV head
    (which chooses the attention kernel), and the shapes and types of the inputs. Sequences,
    lengths, positions and masks are not part of it. After ``cache.forget_graphs()`` every shape is
    captured again.

    Each call works on torch's current stream, and orders it with the stream on which the step
    began.

    Parameters
    ----------
    step : callable
        ``step(*inputs)`` attends over every layer of the cache and returns tensors. It gets tensors
        on the cache's device that always lie at the same addresses. It runs twice when it is
        captured, so it may change nothing but the cache's new tokens. Python in it runs at captures
        only: it must not decide by the step's masks, lengths or values.
    cache : PagedKVCache
        The cache, on a CUDA device.
    max_new_tokens : int
        Steps of more new tokens are not captured: the step runs as it is. Prompts have many
        lengths, and gain little.
    max_graphs : int
        Recordings to keep. The one that was not used for longest goes first.
    recorder : Recorder, optional
        Records and replays; torch's graphs by default.

    Raises
    ------
    TypeError
        If the step cannot be called, or the cache is none.
    ValueError
        If a number is not positive.
    NotImplementedError
        If the cache is on the CPU.

    Examples
    --------
    >>> graph = kvctl.cuda.StepGraph(model, cache)
    >>> with kvctl.torch.forward(cache, [0], [6], mask=tree) as positions:
    ...     logits = graph(tokens, positions)
    """

    def __init__(
        self,
        step: Callable[..., Any],
        cache: PagedKVCache,
        *,
        max_new_tokens: int = 64,
        max_graphs: int = 16,
        recorder: Recorder | None = None,
    ) -> None:
        if not callable(step):
            raise TypeError(f"step must be callable, got {type(step).__name__}")
        if not isinstance(cache, PagedKVCache):
            raise TypeError(f"cache must be a kvctl.PagedKVCache, got {type(cache).__name__}")
        for name, number in (("max_new_tokens", max_new_tokens), ("max_graphs", max_graphs)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        self.cache = cache
        self.max_new_tokens = max_new_tokens
        self.max_graphs = max_graphs
        #: Captures until now: where it keeps rising, shapes change too often for graphs.
        self.num_captures = 0
        self._step = step
        self._generation = self._state().generation
        self._recordings: dict[Hashable, Recording] = {}
        if recorder is None:
            from .torch_recorder import TorchRecorder

            recorder = TorchRecorder(cache)
        self._recorder = recorder

    def __call__(self, *inputs: Any) -> Any:
        """Run the step that is in flight.

        Parameters
        ----------
        *inputs : tensor
            What the step takes. They are copied.

        Returns
        -------
        tensor or tensors
            What the step returns. The next call of the same shape overwrites it.

        Raises
        ------
        RuntimeError
            If no step of the cache is in flight, or the step did not capture attention over all of
            its layers. Abort the step: nothing was replayed.
        TypeError, ValueError
            If an input is no tensor, or a step of another cache surrounds the call.
        """
        if not self.cache.in_forward:
            raise RuntimeError(
                "no step of the graph's cache is in flight: call it in `with cache.forward(...)`"
            )
        state = self._state()
        shapes = self._recorder.shapes(inputs)
        if state.num_new_tokens > self.max_new_tokens:
            return self._step(*inputs)
        if state.generation != self._generation:
            self._recordings.clear()
            self._generation = state.generation
        key = (state.num_new_tokens, state.item_rows, shapes)
        recording = self._recordings.pop(key, None)
        if recording is None:
            recording = self._record(inputs, state)
        self._recordings[key] = recording  # the last used is the last
        if len(self._recordings) > self.max_graphs:
            del self._recordings[next(iter(self._recordings))]
        return recording.replay(inputs, state.stream)

    def _state(self) -> _GraphState:
        return _GraphState(*ffi.cache.get_graph_state(self.cache.handle))

    def _record(self, inputs: tuple[Any, ...], state: _GraphState) -> Recording:
        recording = self._recorder.record(self._step, inputs, state.stream)
        # A replay goes unseen by the cache, which could not tell that a layer lacks its K and V.
        captured = self._state().num_captured - state.num_captured
        layers = self.cache.num_layers
        if captured < layers:
            some = f"attention in {captured} of {layers} layers" if captured else "no attention"
            raise RuntimeError(
                f"the step captured {some} over the graph's cache: it attends over another "
                "one, leaves layers out, or works on another stream than the one that is captured"
            )
        self.num_captures += 1
        return recording

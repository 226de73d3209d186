"""Steps recorded with torch's CUDA graphs. Has never run: there was no GPU."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
import tvm_ffi

from ..cache import PagedKVCache
from ..torch.evaluation import check_evaluation
from ..torch.step import current_cache
from ..torch.tensors import cache_device


class TorchRecorder:
    """Records steps of torch models over one cache.

    Parameters
    ----------
    cache : PagedKVCache
        A cache on a CUDA device.
    """

    def __init__(self, cache: PagedKVCache) -> None:
        self._cache = cache
        self._device = cache_device(cache)

    def shapes(self, inputs: Sequence[Any]) -> Hashable:
        """Return the shapes and types of a step's inputs, as :class:`kvctl.cuda.Recorder`."""
        for one in inputs:
            if not isinstance(one, torch.Tensor):
                raise TypeError(f"a step's inputs must be tensors, got {type(one).__name__}")
        try:
            current = current_cache()
        except RuntimeError:
            current = self._cache  # the step names its cache itself
        if current is not self._cache:
            raise ValueError("the step in flight is of another cache than the graph's")
        return tuple((tuple(one.shape), one.dtype) for one in inputs)

    def record(
        self, step: Callable[..., Any], inputs: Sequence[torch.Tensor], stream: int
    ) -> TorchRecording:
        """Run a step once on a side stream, as torch asks, and then capture it.

        Raises
        ------
        RuntimeError
            If the step is a module in training mode.
        """
        check_evaluation(step)
        with torch.inference_mode(), torch.cuda.device(self._device):
            kept = [torch.empty_like(one, device=self._device).copy_(one) for one in inputs]
            side, begun = torch.cuda.Stream(), torch_stream(stream, self._device)
            side.wait_stream(torch.cuda.current_stream())
            side.wait_stream(begun)
            # Libraries load kernels and allocate in their first calls, which a capture forbids.
            with tvm_ffi.use_torch_stream(torch.cuda.stream(side)):
                step(*kept)
            torch.cuda.current_stream().wait_stream(side)
            begun.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with tvm_ffi.use_torch_stream(torch.cuda.graph(graph)):
                results = step(*kept)
        return TorchRecording(graph, kept, results, self._device)


class TorchRecording:
    """A torch graph, and the tensors that it reads and writes."""

    def __init__(
        self,
        graph: torch.cuda.CUDAGraph,
        inputs: list[torch.Tensor],
        results: Any,
        device: torch.device,
    ) -> None:
        self._graph = graph
        self._inputs = inputs
        self._results = results
        self._device = device

    def replay(self, inputs: Sequence[torch.Tensor], stream: int) -> Any:
        """Replay on torch's current stream, in order with the stream of the step."""
        with torch.inference_mode(), torch.cuda.device(self._device):
            current, begun = torch.cuda.current_stream(), torch_stream(stream, self._device)
            if begun != current:
                current.wait_stream(begun)
            for kept, given in zip(self._inputs, inputs, strict=True):
                kept.copy_(given)
            self._graph.replay()
            if begun != current:
                begun.wait_stream(current)
        return self._results


def torch_stream(stream: int, device: torch.device) -> torch.cuda.Stream:
    """Return a ``cudaStream_t`` as torch names it; 0 is the default stream."""
    if stream == 0:
        return torch.cuda.default_stream(device)
    return torch.cuda.ExternalStream(stream, device)

"""Times on a CUDA device: replayed graphs between events, and the copy bandwidth."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch


def spread(times: list[float]) -> dict[str, float]:
    """Median, least and most of some times."""
    return {"median": median(times), "least": min(times), "most": max(times)}


def timed(run: Callable[[], Any], *, calls: int, repeats: int = 7) -> dict[str, float]:
    """Seconds of one of `calls` calls that `run` makes, between events on the current stream."""
    run()
    torch.cuda.synchronize()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1000 / calls)
    return spread(times)


def graph_of(run: Callable[[], Any]) -> Callable[[], Any]:
    """`run` as a CUDA graph, kvctl's launches in it; replayed without the host's share."""
    warm = torch.cuda.Stream()
    warm.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def copy_bandwidth() -> float:
    """Bytes a second that a copy within the device reads and writes together, the best of ten."""
    source = torch.empty(2 << 30, dtype=torch.uint8, device="cuda").random_(0, 255)
    target = torch.empty_like(source)
    best = min(timed(lambda: target.copy_(source), calls=1, repeats=10).values())
    return 2 * source.numel() / best


def kernel_seconds(run: Callable[[], Any], names: tuple[str, ...], calls: int) -> dict[str, float]:
    """Seconds per call that kernels of these names take; empty where no profiler works."""
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            for _ in range(calls):
                run()
            torch.cuda.synchronize()
    except RuntimeError:
        return {}
    found: dict[str, float] = {}
    for event in profile.key_averages():
        for name in names:
            if name in event.key:
                total = getattr(event, "device_time_total", 0)
                found[name] = found.get(name, 0) + total / 1e6 / calls
    return found

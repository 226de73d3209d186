"""A layer of attention for a torch model: over kvctl's cache, and over torch's own K and V.

``module`` is ``kvctl.torch.Attention``, ``call`` the library's own function on prepared tensors:
their difference is what the layer of Python and torch costs. ``cat`` appends K and V as
transformers' DynamicCache does, and calls ``scaled_dot_product_attention``; ``static`` writes into
memory that is there already, and attends to it. All take q, k and v as a model has them, and each
pass goes through every layer of a model of SmolLM2-135M's shape. The new tokens of several rows are
causal.

The peers take turns in every round. Prints microseconds for each layer, and whether tensors share
their memory.

    python bench_torch.py [--rounds 15] [--threads 2] [--json out.json]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean, median
from time import perf_counter, sleep
from typing import Any

import kvctl  # before torch: it chooses how long OpenMP's threads spin

# isort: split
import torch

import kvctl.torch
from bench_attention import machine
from kvctl._ffi import functions as ffi

LAYERS, HEADS, KV_HEADS, DIM = 30, 9, 3, 64
CONTEXTS, NEW_TOKENS = [128, 1024, 4096], [1, 8, 64]


class Peers:
    """A past of one length in each cache, and one pass through the layers on each."""

    def __init__(self, context: int, new: int) -> None:
        self.context, self.new = context, new
        shape = (LAYERS, 1, KV_HEADS, context + new, DIM)
        self.all_k, self.all_v = torch.randn(shape), torch.randn(shape)
        self.past_k = list(self.all_k[:, :, :, :context].contiguous())
        self.past_v = list(self.all_v[:, :, :, :context].contiguous())
        # As a projection and RoPE leave them: tokens outermost in memory.
        make = lambda heads: torch.randn(LAYERS, 1, new, heads, DIM).transpose(2, 3)  # noqa: E731
        self.q, self.k, self.v = make(HEADS), make(KV_HEADS), make(KV_HEADS)
        self.sees = torch.ones(new, context + new, dtype=torch.bool).tril(context)
        self.cache = kvctl.PagedKVCache.create(
            num_layers=LAYERS,
            num_qo_heads=HEADS,
            num_kv_heads=KV_HEADS,
            head_dim=DIM,
            max_total_tokens=context + new + 16,
            prefill_chunk_size=max(context, new),
        )
        self.cache.add_sequence(0)
        none = torch.zeros(1, HEADS, context, DIM)
        with self.cache.forward([0], [context], mask=kvctl.Mask.window(1)):  # only to fill it
            for layer in range(LAYERS):
                past = none, self.past_k[layer], self.past_v[layer]
                kvctl.torch.attention(self.cache, layer, *past)
        self.modules = [kvctl.torch.Attention(layer) for layer in range(LAYERS)]
        self.qkv = torch.randn(new, HEADS + 2 * KV_HEADS, DIM)
        self.out = torch.empty(new, HEADS, DIM)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Attend by torch's function."""
        mask = None if self.new == 1 else self.sees
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)

    def cat(self, layer: int, *qkv: torch.Tensor) -> None:
        """Append by torch.cat, and attend."""
        q, k, v = qkv
        k, v = torch.cat([self.past_k[layer], k], 2), torch.cat([self.past_v[layer], v], 2)
        self.attend(q, k, v)

    def static(self, layer: int, *qkv: torch.Tensor) -> None:
        """Write in place, and attend."""
        q, k, v = qkv
        all_k, all_v = self.all_k[layer], self.all_v[layer]
        all_k[:, :, self.context :], all_v[:, :, self.context :] = k, v
        self.attend(q, all_k, all_v)

    def module(self, layer: int, *qkv: torch.Tensor) -> None:
        """Attend by kvctl's module."""
        self.modules[layer](*qkv)

    def call(self, layer: int, *qkv: torch.Tensor) -> None:
        """Attend by a bare call."""
        given = self.qkv, self.out, DIM**-0.5, 0.0, None, None, None, None
        ffi.cache.attend(self.cache.handle, layer, *given)

    def time(self, name: str) -> list[float]:
        """Return the seconds of each layer in one pass of a peer."""
        attend, times = getattr(self, name), []
        with kvctl.torch.forward(self.cache, [0], [self.new], pending=True):
            for layer in range(LAYERS):
                qkv = self.q[layer], self.k[layer], self.v[layer]
                begin = perf_counter()
                attend(layer, *qkv)
                times.append(perf_counter() - begin)
        self.cache.abort()
        return times

    def step(self) -> float:
        """Return the seconds of a step's beginning and end."""
        begin = perf_counter()
        with kvctl.torch.forward(self.cache, [0], [self.new], pending=True):
            pass
        end = perf_counter()
        self.cache.abort()
        return end - begin


PEERS = ("module", "call", "cat", "static")


def shares_memory() -> bool:
    """Return whether tensors cross in both directions without a copy."""
    tensor = torch.randn(3, 4)
    there = kvctl.torch.to_cache(tensor)
    return bool(tensor.data_ptr() == there.data_ptr() == kvctl.torch.from_cache(there).data_ptr())


def measure(context: int, new: int, rounds: int) -> dict[str, Any]:
    """Return the least and the median microseconds of each peer for one layer."""
    peers = Peers(context, new)
    times: dict[str, list[list[float]]] = {name: [] for name in PEERS}
    steps: list[float] = []
    for _ in range(rounds):
        for name, passes in times.items():
            sleep(0.01)
            passes.append(peers.time(name))
        steps.append(peers.step())
    result: dict[str, Any] = {"context": context, "new": new}
    for name, passes in times.items():
        least = mean(min(layer) for layer in zip(*passes, strict=True))
        result[name] = [least * 1e6, median(t for one in passes for t in one) * 1e6]
    return {**result, "step": [min(steps) * 1e6, median(steps) * 1e6]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--contexts", type=int, nargs="+", default=CONTEXTS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shared = shares_memory()
    print(f"torch {torch.__version__}; tensors share memory: {shared}")
    print("microseconds of a layer (each layer's least, their mean); step: its beginning and end")
    print("context  new   module     call   between      cat   static  cat / module    step")
    rows = []
    with torch.inference_mode():
        for context in options.contexts:
            for new in NEW_TOKENS:
                row = measure(context, new, options.rounds)
                rows.append(row)
                module, call, cat, static, step = (row[name][0] for name in (*PEERS, "step"))
                print(
                    f"{context:7} {new:4} {module:8.1f} {call:8.1f} {module - call:9.1f} "
                    f"{cat:8.1f} {static:8.1f} {cat / module:12.2f}x {step:7.1f}"
                )
    if options.json:
        about = {"machine": machine(), "torch": torch.__version__, "threads": options.threads}
        result = {**about, "shares_memory": shared, "rows": rows}
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

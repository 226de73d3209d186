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
from statistics import median
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
            prefill_chunk_size=context,
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

    def cat(self) -> float:
        """Return the seconds of a pass that appends by torch.cat."""
        begin = perf_counter()
        for layer in range(LAYERS):
            k = torch.cat([self.past_k[layer], self.k[layer]], 2)
            v = torch.cat([self.past_v[layer], self.v[layer]], 2)
            self.attend(self.q[layer], k, v)
        return perf_counter() - begin

    def static(self) -> float:
        """Return the seconds of a pass that writes in place."""
        begin = perf_counter()
        for layer in range(LAYERS):
            k, v = self.all_k[layer], self.all_v[layer]
            k[:, :, self.context :] = self.k[layer]
            v[:, :, self.context :] = self.v[layer]
            self.attend(self.q[layer], k, v)
        return perf_counter() - begin

    def module(self) -> float:
        """Return the seconds of a pass through kvctl's modules."""
        with kvctl.torch.forward(self.cache, [0], [self.new], pending=True):
            begin = perf_counter()
            for layer in range(LAYERS):
                self.modules[layer](self.q[layer], self.k[layer], self.v[layer])
            end = perf_counter()
        self.cache.abort()
        return end - begin

    def call(self) -> float:
        """Return the seconds of a pass of bare calls."""
        with self.cache.forward([0], [self.new], pending=True):
            begin = perf_counter()
            for layer in range(LAYERS):
                given = self.qkv, self.out, DIM**-0.5, 0.0, None, None, None, None
                ffi.cache.attention(self.cache.handle, layer, *given)
            end = perf_counter()
        self.cache.abort()
        return end - begin

    def step(self) -> float:
        """Return the seconds of a step's beginning and end, per layer as the rest is."""
        begin = perf_counter()
        with kvctl.torch.forward(self.cache, [0], [self.new], pending=True):
            pass
        end = perf_counter()
        self.cache.abort()
        return end - begin


PEERS = ("module", "call", "cat", "static", "step")


def shares_memory() -> bool:
    """Return whether tensors cross in both directions without a copy."""
    tensor = torch.randn(3, 4)
    there = kvctl.torch.to_cache(tensor)
    return bool(tensor.data_ptr() == there.data_ptr() == kvctl.torch.from_cache(there).data_ptr())


def measure(context: int, new: int, rounds: int) -> dict[str, Any]:
    """Return the least and the median microseconds of each peer for one layer."""
    peers = Peers(context, new)
    turns: dict[str, list[float]] = {name: [] for name in PEERS}
    for _ in range(rounds):
        for name, times in turns.items():
            sleep(0.01)
            times.append(getattr(peers, name)() * 1e6 / (1 if name == "step" else LAYERS))
    result: dict[str, Any] = {n: [min(times), median(times)] for n, times in turns.items()}
    return {"context": context, "new": new, **result}


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
    print("microseconds for a layer (least); step: beginning and end of one")
    print("context  new   module     call   between      cat   static  cat / module    step")
    rows = []
    with torch.inference_mode():
        for context in options.contexts:
            for new in NEW_TOKENS:
                row = measure(context, new, options.rounds)
                rows.append(row)
                module, call, cat, static, step = (row[name][0] for name in PEERS)
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

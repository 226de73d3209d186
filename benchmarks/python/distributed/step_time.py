"""What a step of a sharded model takes: bytes, latency, collectives.

    python step_time.py                 # Llama-3-70B on H100s, from assumptions
    python step_time.py --latency-us 8  # with another latency of an allreduce

docs/machines/tensor_parallel.md says what the parts are, and how far they are from what was
measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from kvctl.models import LlamaConfig
from kvctl.models.graph.tensor_parallel import TensorParallel

LLAMA_3_70B = LlamaConfig(
    hidden_size=8192,
    intermediate_size=28672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=128256,
    context_window_size=8192,
)


@dataclass(frozen=True)
class Machine:
    """One worker, and its way to the others.

    Parameters
    ----------
    bandwidth : float
        Bytes per second that it reads from its memory.
    flops : float
        Multiplications and additions per second.
    latency : float
        Seconds of an allreduce, or an allgather, of a few bytes.
    link : float
        Bytes per second that it sends, and receives at the same time.
    layer : float
        Seconds that a layer takes beside its matrices and collectives.
    step : float
        Seconds that a step takes beside its layers.
    """

    bandwidth: float
    flops: float
    latency: float
    link: float
    layer: float = 0.0
    step: float = 0.0


# Assumed, not measured: 84% of 3.35 TB/s, 60% of the dense peak, 80% of NVLink's 450 GB/s each way,
# and a small allreduce of NCCL among eight.
H100 = Machine(2.8e12, 6e14, latency=20e-6, link=3.6e11, layer=15e-6, step=200e-6)


@dataclass(frozen=True)
class Work:
    """What a step does.

    Parameters
    ----------
    rows : int
        New tokens of all sequences together.
    context : int
        Cached tokens that are read, of all sequences together.
    weight_bytes, kv_bytes, activation_bytes : float
        Bytes of a weight, of an element of K and V, of an activation.
    gathers : bool
        Whether logits are joined on worker 0.
    sums : str
        "partial" or "whole", as the model is compiled.
    """

    rows: int
    context: int = 0
    weight_bytes: float = 2.0
    kv_bytes: float = 2.0
    activation_bytes: float = 2.0
    gathers: bool = True
    sums: str = "partial"


@dataclass(frozen=True)
class StepTime:
    """Seconds of the parts of a step; what reads memory and what computes overlap."""

    weights: float
    kv: float
    arithmetic: float
    latency: float
    transfer: float
    logits: float
    rest: float

    @property
    def total(self) -> float:
        """Seconds of the step."""
        reads = max(self.weights + self.kv, self.arithmetic)
        return reads + self.latency + self.transfer + self.logits + self.rest


def worker_weights(config: LlamaConfig, workers: int) -> int:
    """Return the weights that a worker reads in a step: its layers and its part of the head."""
    parallel = TensorParallel(config, workers)
    local, hidden = parallel.local, config.hidden_size
    heads = (local.num_qkv_heads + local.num_attention_heads) * config.head_dim
    inside = (3 if config.gated_mlp else 2) * local.intermediate_size
    return hidden * (config.num_hidden_layers * (heads + inside) + parallel.vocab)


def step_time(config: LlamaConfig, workers: int, work: Work, machine: Machine) -> StepTime:
    """Return what a step takes on so many workers."""
    parallel = TensorParallel(config, workers)
    local, layers = parallel.local, config.num_hidden_layers
    weights = worker_weights(config, workers)
    cached = 2 * local.num_key_value_heads * config.head_dim * layers * work.context
    several = workers > 1
    others = (workers - 1) / workers
    hidden, whole = config.hidden_size, work.sums == "whole"
    if whole:  # each part of a row reaches every other worker once
        sent = config.num_attention_heads * config.head_dim + config.intermediate_size + 2 * hidden
    else:  # two allreduces, which pass over their rows twice
        sent = 4 * hidden
    message = work.rows * sent * work.activation_bytes
    if several and work.gathers:
        logits = machine.latency + others * work.rows * config.vocab_size * 4 / machine.link
    else:
        logits = 2 * machine.latency if several else 0.0
    return StepTime(
        weights=weights * work.weight_bytes / machine.bandwidth,
        kv=cached * work.kv_bytes / machine.bandwidth,
        arithmetic=2 * weights * work.rows / machine.flops,
        latency=(4 if whole else 2) * layers * machine.latency if several else 0.0,
        transfer=layers * others * message / machine.link,
        logits=logits,
        rest=machine.step + layers * machine.layer,
    )


def table(config: LlamaConfig, machine: Machine, works: Sequence[Work]) -> str:
    """Return a table of several numbers of workers, in milliseconds."""
    names = [field.name for field in fields(StepTime)]
    lines = [f"| workers | rows | {' | '.join(names)} | step ms |", "|---" * (len(names) + 3) + "|"]
    for workers in (2, 4, 8):
        for work in works:
            found = step_time(config, workers, work, machine)
            parts = " | ".join(f"{getattr(found, name) * 1e3:.2f}" for name in names)
            lines.append(f"| {workers} | {work.rows} | {parts} | {found.total * 1e3:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table of Llama-3-70B on H100s."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--latency-us", type=float, default=H100.latency * 1e6)
    parser.add_argument("--weight-bytes", type=float, default=2.0)
    parser.add_argument("--sums", choices=("partial", "whole"), default="partial")
    options = parser.parse_args()
    machine = replace(H100, latency=options.latency_us * 1e-6)
    works = [
        Work(
            rows,
            context=options.context,
            weight_bytes=options.weight_bytes,
            sums=options.sums,
        )
        for rows in options.rows
    ]
    print(table(LLAMA_3_70B, machine, works))


if __name__ == "__main__":
    main()

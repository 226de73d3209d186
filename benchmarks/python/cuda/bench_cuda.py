"""kvctl on a CUDA device: attention, verification, the host's share, a model.

    python bench_cuda.py --json out.json [--quick] [--model DIR] [--parts abcd]

(a) Masked paged attention at verify shapes, float16, 32 / 8 heads x 128, a tree mask and a causal
one, as a fraction of the copy bandwidth that the same run measures (reading K and V once, over the
time of a layer in a replayed CUDA graph). Its peers are torch's scaled_dot_product_attention and
FlexAttention and, where it is installed, FlashInfer. (b) Verification of chains, beside the same
rule in torch, FlashInfer's chain sampling, and the time of reading the rows at that bandwidth.
(c) The host's time for begin_forward and end_forward. (d) A model in a directory, compiled for
CUDA: tokens a second plainly, and with tokens drafted from its own output.

Everything runs in one process. The tables show medians; the JSON has the least and the most too.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import cuda_attention
import kvctl
from cuda_timing import copy_bandwidth, kernel_seconds, spread


def show_attention(row: dict[str, Any]) -> None:
    def micro(name: str) -> str:
        times = row.get(name)
        return f"{times['median'] * 1e6:9.1f}" if isinstance(times, dict) else f"{'-':>9}"

    print(
        f"{row['batch']:>5}{row['new']:>5}{row['kv']:>8}  {micro('tree')}{micro('causal')}"
        f"{micro('eager')}{micro('sdpa')}{micro('flex')}{micro('flashinfer')}"
        f"{row['of_bandwidth']:8.0%}{row['tree_over_causal']:8.2f}",
        flush=True,
    )


def attention(bandwidth: float, quick: bool) -> list[dict[str, Any]]:
    print("\n(a) attention, microseconds a layer")
    print("batch  new      kv       tree   causal    eager     sdpa     flex flashinf  of bw  t/c")
    rows = []
    for batch, new, kv in cuda_attention.shapes(quick):
        rows.append(cuda_attention.measure(batch, new, kv, bandwidth, peers=not quick))
        show_attention(rows[-1])
    return rows


def torch_chain(target: Any, draft: Any, tokens: Any) -> Any:
    """Token-wise rejection over a batch of chains, all rows at once."""
    batch, length = tokens.shape
    p, index = torch.softmax(target, -1), tokens.long()[..., None]
    p_x, q_x = p[:, :length].gather(2, index)[..., 0], draft.gather(2, index)[..., 0]
    accepted = (torch.rand_like(p_x) < p_x / q_x).cumprod(1).sum(1)
    rows = torch.arange(batch, device=p.device)
    padded = torch.cat([draft, torch.zeros_like(draft[:, :1])], 1)
    residual = (p[rows, accepted] - padded[rows, accepted]).clamp_min(0)
    return accepted, torch.multinomial(residual, 1)


def verify_case(batch: int, vocab: int, length: int, bandwidth: float) -> dict[str, Any]:
    target = torch.randn(batch, length + 1, vocab, device="cuda") * 3
    noise = torch.randn(batch, length, vocab, device="cuda")
    draft = torch.softmax(target[:, :length] + 0.5 * noise, -1)
    tokens = torch.multinomial(draft.flatten(0, 1), 1).reshape(batch, length).int()
    trees = [kvctl.TokenTree.chain([0, *chain]) for chain in tokens.tolist()]
    distributions = torch.cat([draft, draft[:, :1]], 1).flatten(0, 1).contiguous()
    logits = target.flatten(0, 1)

    def ours() -> Any:
        return kvctl.verify(
            logits,
            trees,
            rule="token_wise",
            drawn="independent",
            draft_probs=distributions,
            request_ids=range(batch),
            root_positions=[7] * batch,
        )

    def theirs() -> Any:
        return torch_chain(target, draft, tokens)

    kernels = kernel_seconds(ours, ("SumRowsKernel", "WalkTreesKernel"), 20)
    read_once = 4 * (target.numel() + draft.numel()) / bandwidth
    return {
        "batch": batch,
        "vocab": vocab,
        "drafts": length,
        "kvctl": wall(ours),
        "torch": wall(theirs),
        "flashinfer": flashinfer_chain(target, draft, tokens),
        "kernels": kernels,
        "torch_kernels": kernel_seconds(theirs, ("",), 20),
        "read_once": read_once,
        "over_read_once": sum(kernels.values()) / read_once if kernels else None,
    }


def verification(bandwidth: float) -> list[dict[str, Any]]:
    print("\n(b) verification, milliseconds a call")
    print("    B       V drafts   wall  kernels  torch flashinf  reading the rows   x")
    rows = []
    for batch, vocab, length in ((16, 32000, 5), (32, 128256, 8)):
        row = verify_case(batch, vocab, length, bandwidth)
        rows.append(row)
        flash = row["flashinfer"]
        flash = f"{flash['median'] * 1e3:8.3f}" if isinstance(flash, dict) else f"{'-':>8}"
        times = row["over_read_once"]
        print(
            f"{batch:>5}{vocab:>8}{length:>6}  {row['kvctl']['median'] * 1e3:7.3f}"
            f"{sum(row['kernels'].values()) * 1e3:8.3f}{row['torch']['median'] * 1e3:8.3f} {flash}"
            f"{row['read_once'] * 1e3:14.3f}" + (f"{times:9.2f}" if times else f"{'-':>9}"),
            flush=True,
        )
    return rows


def flashinfer_chain(target: Any, draft: Any, tokens: Any) -> Any:
    try:
        import flashinfer

        p = torch.softmax(target, -1)
        return wall(lambda: flashinfer.sampling.chain_speculative_sampling(draft, tokens, p))
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"


def wall(run: Any, repeats: int = 21) -> dict[str, float]:
    """Return the seconds of a call for its caller, the device's work included."""
    times = []
    for i in range(repeats + 3):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        torch.cuda.synchronize()
        if i >= 3:
            times.append(time.perf_counter() - begin)
    return spread(times)


def host_time() -> list[dict[str, Any]]:
    print("\n(c) the host's time for a step, microseconds")
    rows = []
    for batch, new, kv in ((1, 8, 8192), (8, 8, 8192), (32, 8, 8192), (32, 64, 8192)):
        case = cuda_attention.Case(batch, new, kv)
        tree = [kvctl.Mask.tree(cuda_attention.random_tree(new))] * batch
        begins, calls = [], []
        for _ in range(30):
            torch.cuda.synchronize()
            start = time.perf_counter()
            run = case.step(tree)
            begun = time.perf_counter()
            run()
            done = time.perf_counter()
            case.cache.abort()
            begins.append(begun - start)
            calls.append((done - begun) / case.layers)
        row = {"batch": batch, "new": new, "kv": kv, "begin_forward": spread(begins)}
        row["attention_call"] = spread(calls)
        rows.append(row)
        print(
            f"{batch:>5}{new:>5}{kv:>8}  begin_forward {median(begins) * 1e6:8.1f}   "
            f"attention call {median(calls) * 1e6:8.1f}",
            flush=True,
        )
        del case
        torch.cuda.empty_cache()
    return rows


def model(directory: Path) -> dict[str, Any]:
    print("\n(d) a model: tokens a second")
    runner = kvctl.ModelRunner.load(directory, device="cuda", max_total_tokens=8192)
    rng = np.random.default_rng(0)
    prompt = [int(t) for t in rng.integers(10, 1000, 128)]
    results: dict[str, Any] = {"directory": directory.name}
    for name in ("plain", "lookup"):
        speeds, steps = [], 1
        for _ in range(4):
            drafter = kvctl.draft.LookupDrafter() if name == "lookup" else None
            torch.cuda.synchronize()
            start = time.perf_counter()
            done = kvctl.generate(runner, prompt, max_new_tokens=256, drafter=drafter)
            torch.cuda.synchronize()
            speeds.append(len(done.tokens) / (time.perf_counter() - start))
            steps = done.statistics.rounds
        results[name] = {"tokens_per_second": spread(speeds[1:]), "steps": steps}
        print(f"  {name:<8}{median(speeds[1:]):9.1f}   steps for 256 tokens: {steps}", flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="fewer shapes, no peers")
    parser.add_argument("--model", type=Path, help="a model directory compiled for CUDA, for (d)")
    parser.add_argument("--parts", default="abcd")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench_cuda.py needs a CUDA device")
    torch.manual_seed(0)
    bandwidth = copy_bandwidth()
    device = torch.cuda.get_device_properties(0)
    report: dict[str, Any] = {
        "machine": {
            "device": device.name,
            "multiprocessors": device.multi_processor_count,
            "memory": device.total_memory,
            "copy_bandwidth": bandwidth,
        },
        "versions": {
            "kvctl": kvctl.__version__,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "python": sys.version.split()[0],
        },
    }
    print(f"{device.name}, copy bandwidth {bandwidth / 1e12:.2f} TB/s")
    parts = {
        "a": ("attention", lambda: attention(bandwidth, arguments.quick)),
        "b": ("verification", lambda: verification(bandwidth)),
        "c": ("host", host_time),
        "d": ("model", lambda: model(arguments.model) if arguments.model else None),
    }
    for letter, (name, run) in parts.items():
        if letter not in arguments.parts:
            continue
        try:
            report[name] = run()
        except Exception as error:  # the other parts still run
            report[name] = f"failed: {type(error).__name__}: {error}"
            print(report[name], file=sys.stderr)
        if arguments.json:
            arguments.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()

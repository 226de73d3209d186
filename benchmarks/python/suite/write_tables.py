"""Write the tables of benchmarks/README.md from the stored results, a table for each machine.

    python benchmarks/python/suite/write_tables.py [--check]

A table stands between `<!-- table NAME -->` and `<!-- end -->`. Every folder of benchmarks/results
that has NAME.json, with what it was measured on, gives one. --check changes nothing: it says
whether the page is what this program writes, and `make lint` asks it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import table_rows as rows

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "benchmarks" / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
PLACE = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
INSTRUCTIONS = {
    "avx2": "AVX2",
    "avx2vnni": "AVX2 with AVX-VNNI",
    "avx512": "AVX-512",
}

TABLES: dict[str, Callable[[Any], Iterable[list[str]]]] = {
    "step_cost": rows.step_cost,
    "mask_lowering": rows.mask_lowering,
    "verification": rows.verification,
    "verify": rows.verify,
    "attention": rows.attention,
    "recurrent": rows.recurrent,
    "model": rows.model,
    "drafting": rows.drafting,
    "generate": rows.generate,
    "generate_int8": rows.generate,
    "generate_int4": rows.generate,
    "loop": rows.loop,
    "linear": rows.linear,
    "dtypes": rows.dtypes,
}


def machine(measured: dict[str, Any]) -> str:
    """Return the line above a table: the machine, and how busy it was."""
    isa = INSTRUCTIONS.get(measured["isa"], measured["isa"])
    used = f"{isa} code, by `KVCTL_ISA`" if measured.get("forced_isa") else isa
    parts = [f"{measured['cpus']} cores of {measured['cpu']}, {used}"]
    threads = measured.get("openmp_threads", measured["cpus"])
    if threads != measured["cpus"]:
        parts.append(f"{threads} thread{'s' if threads > 1 else ''}")
    if measured.get("bytes_per_second"):
        parts.append(f"memory {measured['bytes_per_second'] / 1e9:.0f} GB/s")
    if measured.get("load"):
        parts.append(f"load {measured['load'][0]:.0f} to {measured['load'][1]:.0f}")
    if measured.get("quick"):
        parts.append("quick run")
    if measured.get("day"):
        parts.append(measured["day"])
    return "; ".join(parts)


def table(name: str, results: Path) -> str:
    """Return the tables of one benchmark, each below its machine."""
    parts = []
    for path in sorted(results.glob(f"*/{name}.json")):
        result = json.loads(path.read_text())
        head, *body = TABLES[name](result)
        lines = [head, ["---"] * len(head), *body]
        drawn = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"{machine(result['measured'])}:\n\n{drawn}\n")
    return "\n".join(parts)


def written(page: str, results: Path = RESULTS) -> str:
    """Return the page with its tables written anew.

    Raises
    ------
    ValueError
        If the page names a table that this program does not know.
    """

    def write(place: re.Match[str]) -> str:
        if place[2] not in TABLES:
            raise ValueError(f"there is no table {place[2]!r}: known are {', '.join(TABLES)}")
        return f"{place[1]}\n{table(place[2], results)}\n{place[3]}"

    return PLACE.sub(write, page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; 1 where it differs")
    options = parser.parse_args()
    before = PAGE.read_text()
    after = written(before)
    if not options.check:
        PAGE.write_text(after)
    elif after != before:
        sys.exit("benchmarks/README.md is not what benchmarks/results says: run `make tables`")


if __name__ == "__main__":
    main()

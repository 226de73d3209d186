"""What ptxas makes of the CUDA kernels: registers, spills, shared memory, instructions.

    python cuda_kernels.py --json out.json [--sources DIR] [--arch sm_90] [attention_128 append]

Needs nvcc and no GPU. Each source of cpp/kernels/cuda is compiled to a cubin; with ``nvdisasm``
(``pip install nvidia-cuda-nvdisasm``, or on the PATH) the instructions are counted too, and those
of the loop that matters (see `loops`). ``--before FILE``, the JSON of other sources, adds their
figures to the table. Dynamic shared memory is not in it: the launch asks for it.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
NOTE = """`benchmarks/python/cuda/cuda_kernels.py`, nvcc 13.0, sm_90; no GPU was used. Where two
figures stand, the first is of the kernels at c35ca1c. *loop*: instructions of the
shortest loop with tensor core instructions, without any of the longest innermost
loop; of 32 keys where four warps of queries had 64 before. Dynamic shared memory of a block of
attention with head_dim 128: 71,184 bytes for up to 64 queries (88,576 before), 62,480 for up to 32,
111,888 for up to 16 with three stages or 77,072 with two (75,520 before). *true* are the kernels
for soft caps and ALiBi, *Float8* those for pages of 8-bit floats."""
FIELDS = ("registers", "stack", "spill_stores", "spill_loads", "instructions", "loop")


def nvdisasm() -> str | None:
    """Return the path of nvdisasm: on the PATH, or in this Python's packages."""
    packages = [Path(path) / "nvidia" for path in sys.path]
    found = (hit for folder in packages for hit in folder.glob("*/bin/nvdisasm"))
    return shutil.which("nvdisasm") or next((str(hit) for hit in found), None)


def demangled(names: list[str]) -> dict[str, str]:
    """Return readable names of kernels: the class or function and its template arguments."""
    if not names or shutil.which("c++filt") is None:
        return {name: name for name in names}
    done = subprocess.run(["c++filt", *names], capture_output=True, text=True, check=True)
    short = {}
    for name, line in zip(names, done.stdout.splitlines(), strict=True):
        text = re.sub(r"kvctl::cuda::|\(anonymous namespace\)::|^void |\(int\)|\(bool\)", "", line)
        short[name] = text.partition("(")[0].strip()
    return short


def loops(lines: list[str]) -> tuple[int, int]:
    """Return the instructions of a kernel, and those of the loop that matters.

    That is the shortest loop with tensor core instructions; without any, the longest loop that has
    no inner one.
    """
    jumps, labels, products, count = [], {}, [], 0
    for line in lines:
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = count
        elif re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+\S", line):
            if target := re.search(r"\bBRA\b.*`\((\.L_\w+)\)", line):
                jumps.append((count, target[1]))
            if "HMMA" in line or "WGMMA" in line:
                products.append(count)
            count += 1
    back = [(labels[name], at) for at, name in jumps if labels.get(name, at + 1) <= at]
    around = [(b, e) for b, e in back if any(b <= at <= e for at in products)]
    if around:
        return count, min(end - begin + 1 for begin, end in around)
    inner = [
        (begin, end)
        for begin, end in back
        if not any((b, e) != (begin, end) and begin <= b and e <= end for b, e in back)
        and end > begin  # not the trap behind the last instruction
    ]
    return count, max((end - begin + 1 for begin, end in inner), default=0)


def instructions(cubin: Path, tool: str) -> dict[str, tuple[int, int]]:
    """Return what `loops` counts, of each kernel of a cubin."""
    text = subprocess.run([tool, "-c", str(cubin)], capture_output=True, text=True, check=True)
    kernels: dict[str, list[str]] = {}
    name = ""
    for line in text.stdout.splitlines():
        if section := re.match(r"\.section\s+\.text\.([^,\s]+)", line.strip()):
            name = section[1]
        elif name:
            kernels.setdefault(name, []).append(line)
    return {name: loops(lines) for name, lines in kernels.items()}


def compile_source(source: Path, folder: Path, arch: str) -> list[dict[str, Any]]:
    """Return the figures of a source's kernels."""
    cpp = next(parent for parent in source.parents if parent.name == "cpp")
    flags = ["-std=c++17", "-O3", "-lineinfo", "-Xptxas=-v", f"-arch={arch}"]
    if "verify" in source.relative_to(cpp).parts:
        flags += ["-fmad=false", "--expt-relaxed-constexpr"]
    cubin = folder / f"{source.stem}.cubin"
    command = ["nvcc", *flags, "-I", str(cpp), "-I", str(cpp / "include"), "-cubin"]
    done = subprocess.run(
        [*command, str(source), "-o", str(cubin)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(done.stderr)
    rows: dict[str, dict[str, Any]] = {}
    name = ""
    for line in done.stderr.splitlines():
        if entry := re.search(r"Compiling entry function '(\w+)'", line):
            name = entry[1]
        elif name and (stack := re.search(r"(\d+) bytes stack frame, (\d+).*?, (\d+)", line)):
            row = rows.setdefault(name, {"source": source.stem, "name": name})
            row |= dict(zip(FIELDS[1:4], map(int, stack.groups()), strict=True))
        elif name and (used := re.search(r"Used (\d+) registers", line)):
            rows.setdefault(name, {"source": source.stem, "name": name})
            rows[name]["registers"] = int(used[1])
            name = ""
    tool = nvdisasm()
    counts = instructions(cubin, tool) if tool else {}
    short = demangled(list(rows))
    for name, row in rows.items():
        row["kernel"] = short[name]
        row["instructions"], row["loop"] = counts.get(name, (None, None))
        del row["name"]
    return list(rows.values())


def earlier(kernel: str, old: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a kernel before it got its last template argument, or all of them."""
    fewer = re.sub(r", \w+>$", ">", kernel)
    for name in (kernel, fewer, kernel.partition("<")[0]):
        if name in old:
            return dict(old[name])
    return {}


def table(rows: list[dict[str, Any]], before: list[dict[str, Any]]) -> str:
    """Return a Markdown table, figures before and after in one cell."""
    old = {row["kernel"]: row for row in before}
    lines = ["| kernel | " + " | ".join(name.replace("_", " ") for name in FIELDS) + " |"]
    lines.append("|---" * (len(FIELDS) + 1) + "|")
    now = {row["kernel"]: row for row in rows}
    for kernel in sorted(now):
        was, cells = earlier(kernel, old), []
        for field in FIELDS:
            same = not was or was[field] == now[kernel][field]
            cells.append(
                f"{now[kernel][field]}" if same else f"{was[field]} → {now[kernel][field]}"
            )
        lines.append(f"| `{kernel}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="sources by name; all by default")
    parser.add_argument("--sources", type=Path, default=ROOT, help="another checkout")
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for source in sorted((arguments.sources / "cpp/kernels/cuda").rglob("*.cu")):
            if not arguments.names or source.stem in arguments.names:
                rows += compile_source(source, Path(folder), arguments.arch)
    rows.sort(key=lambda row: (row["source"], row["kernel"]))
    before = json.loads(arguments.before.read_text())["kernels"] if arguments.before else []
    text = table(rows, before)
    print(text)
    if arguments.markdown:
        arguments.markdown.write_text(
            f"# What ptxas makes of the CUDA kernels\n\n{NOTE}\n\n{text}\n"
        )
    if arguments.json:
        report = {"arch": arguments.arch, "kernels": rows}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

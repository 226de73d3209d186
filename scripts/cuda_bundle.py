"""Bundle what a CUDA machine without a network needs to build kvctl, test it and measure it.

    python scripts/cuda_bundle.py dist/kvctl-cuda.tar.gz [--model DIR] [--python 3.12] [--prebuilt]

With --prebuilt kvctl is built here, for that Python, which must be here too; the machine then
builds only where what was built does not load. In the bundle: the files that git tracks; the
runtime part of the TVM that is installed here (libraries without the compiler, headers, Python
files); the tvm-ffi wheel of the same version for the machine's Python, and ml_dtypes, which TVM
imports; with --model a model directory that was compiled for CUDA, without its weights
(``cuda_run.sh`` makes seeded ones of the same shapes). On the CUDA machine, unpack it and call
``kvctl-cuda/run.sh`` (docs/machines/cuda.md).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 60 << 20
TVM_LIBRARIES = ("libtvm_runtime.so", "libtvm_runtime_extra.so", "libtvm_runtime_cuda.so")
PROGRAMS = ("tests/cpp/cuda/test_cuda", "benchmarks/cpp/cuda/micro")
RUN = """#!/bin/bash
# Builds kvctl here, tests it on the GPU and measures it; see kvctl/docs/machines/cuda.md.
exec "$(dirname "$0")/kvctl/scripts/cuda_run.sh" "$(realpath "$(dirname "$0")")" "$@"
"""


def tvm_files(package: Path) -> Iterator[Path]:
    """Yield the files of TVM's package that its runtime needs, and those that kvctl compiles."""
    for path in sorted(package.rglob("*")):
        relative = path.relative_to(package)
        if not path.is_file() or "__pycache__" in relative.parts:
            continue
        if relative.parts[0] == "lib":
            if relative.name in TVM_LIBRARIES:
                yield path
        elif relative.parts[0] in ("include", "src") or path.suffix in (".py", ".pyi"):
            yield path


def download_wheels(python: str, target: Path) -> None:
    """Fetch the wheels that the machine lacks, for its Python."""
    wheels = [
        f"apache-tvm-ffi=={importlib.metadata.version('apache-tvm-ffi')}",
        "ml_dtypes",
        "typing_extensions",
    ]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    options = ["--only-binary=:all:", f"--python-version={python}", "--implementation=cp"]
    platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17)]
    subprocess.run(
        [*command, *options, *platforms, "--platform=manylinux2014_x86_64", *wheels, "-d", target],
        check=True,
    )


def prebuild(python: str, architectures: str, folder: Path) -> Path:
    """Build kvctl for a Python; return the folder with ``site`` and ``bin``.

    What was compiled stays in build/cuda_bundle for the next bundle.
    """
    interpreter = shutil.which(f"python{python}")
    if interpreter is None:
        sys.exit(f"--prebuilt needs Python {python} here: there is no python{python}")
    work = ROOT / "build" / "cuda_bundle"
    own = work / f"python{python}" / "bin" / "python"
    if not own.exists():
        subprocess.run([interpreter, "-m", "venv", own.parent.parent], check=True)
    pip = [str(own), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    lines = (ROOT / "third_party" / "requirements" / "build.txt").read_text().splitlines()
    # The CUDA machine has no oneDNN, which is a plugin for the CPU.
    wanted = [line.split("#")[0].strip() for line in lines if not line.startswith("onednn")]
    subprocess.run([*pip, *filter(None, wanted)], check=True)
    defines = {
        "KVCTL_CUDA": "ON",
        "KVCTL_CUDA_ARCHITECTURES": architectures,
        "KVCTL_BUILD_TESTS": "ON",
        "KVCTL_BUILD_BENCHMARKS": "ON",
        "KVCTL_DISTRIBUTED": "OFF",
        "CMAKE_INSTALL_RPATH": "/usr/local/cuda/lib64",
    }
    options = [f"--config-settings=cmake.define.{name}={one}" for name, one in defines.items()]
    options += [
        f"--config-settings=build-dir={work / 'build'}",
        "--config-settings=build.targets=kvctl;_core;kvctl_cuda;test_cuda;micro",
    ]
    site = folder / "site"
    subprocess.run(
        [*pip, "--no-build-isolation", "--no-deps", "--target", site, *options, ROOT], check=True
    )
    programs = folder / "bin"
    programs.mkdir()
    for program in PROGRAMS:
        shutil.copy2(work / "build" / program, programs)
    return folder


def add_bytes(archive: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    """Add a file that is not on disk."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), mode
    archive.addfile(info, io.BytesIO(data))


def main() -> None:
    """Write the bundle."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", type=Path, help="a model directory compiled for CUDA")
    parser.add_argument("--python", default="3.12", help="the machine's Python")
    parser.add_argument("--prebuilt", action="store_true", help="build here, for that Python")
    parser.add_argument(
        "--architectures", default="90", help="those that --prebuilt builds for, as 90;100"
    )
    arguments = parser.parse_args()
    spec = importlib.util.find_spec("tvm")
    if spec is None or spec.origin is None:
        sys.exit("cuda_bundle.py needs apache-tvm installed")
    tvm = Path(spec.origin).parent
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split("\0")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(arguments.output, "w:gz") as archive:
        add_bytes(archive, "kvctl-cuda/run.sh", RUN.encode(), 0o755)
        for name in filter(None, tracked):
            archive.add(ROOT / name, f"kvctl-cuda/kvctl/{name}")
        for path in tvm_files(tvm):
            archive.add(path, f"kvctl-cuda/site/tvm/{path.relative_to(tvm)}")
        with tempfile.TemporaryDirectory() as folder:
            download_wheels(arguments.python, Path(folder))
            for path in sorted(Path(folder).iterdir()):
                archive.add(path, f"kvctl-cuda/wheels/{path.name}")
        if arguments.prebuilt:
            with tempfile.TemporaryDirectory() as folder:
                built = prebuild(arguments.python, arguments.architectures, Path(folder))
                for part in ("site", "bin"):
                    archive.add(built / part, f"kvctl-cuda/{part}")
        for path in sorted(arguments.model.iterdir()) if arguments.model else ():
            if path.suffix != ".bin":
                archive.add(path, f"kvctl-cuda/model/{path.name}")
    size = arguments.output.stat().st_size
    print(json.dumps({"bundle": str(arguments.output), "mib": round(size / 2**20, 1)}))
    if size > LIMIT:
        sys.exit(f"the bundle is larger than {LIMIT >> 20} MiB")


if __name__ == "__main__":
    main()

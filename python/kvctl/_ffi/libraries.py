"""Load TVM's runtime and libkvctl.so, in the order and the state that kvctl needs.

Nothing here imports ``tvm``: its Python package takes a second or more, its runtime library a
tenth.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import re
import sys
from pathlib import Path

from .build_id import gnu_build_id

FFI_PACKAGE = "apache-tvm-ffi"

# One thread pool: kvctl's kernels and oneDNN run on OpenMP. TVM's own pool would pin the calling
# thread, whose mask OpenMP's team inherits, and its idle workers would spin. Both are read when
# TVM's pool starts.
os.environ.setdefault("TVM_BIND_THREADS", "0")
os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "0")
# OpenMP's threads wait for the next layer by spinning, for milliseconds by default: on a machine
# that others use too, a decode step then takes up to a second instead of 23 ms. Spinning for some
# tens of microseconds bridges the gaps between layers as well. Read when libgomp is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def package_dir(name: str) -> Path:
    """Return the folder of an installed package without importing it.

    Raises
    ------
    ImportError
        If there is no such package.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"kvctl needs the Python package '{name}': pip install apache-tvm")
    return Path(next(iter(spec.submodule_search_locations)))


def installed_version(library: Path) -> str:
    """Return the version of the package that a library of TVM's lies in, without importing it."""
    file = library.parent.parent / "_version.py"
    text = file.read_text() if file.exists() else ""
    found = re.search(r"""^__version__\s*=.*?['"]([^'"]+)""", text, re.MULTILINE)
    return found[1] if found else "of unknown version"


def library_dir() -> Path:
    """Return the folder of libkvctl.so, which lies beside the extension module."""
    spec = importlib.util.find_spec("kvctl._core")
    if spec is None or spec.origin is None:
        raise ImportError("kvctl is not built: run 'make', or 'pip install .'")
    return Path(spec.origin).parent / "lib"


def cmake_dir() -> Path:
    """Return the folder of kvctlConfig.cmake, for ``find_package(kvctl)`` in a C++ project."""
    return library_dir() / "cmake" / "kvctl"


def build_info() -> dict[str, str]:
    """Return what CMake recorded about this build (versions and build-ids)."""
    info: dict[str, str] = json.loads((library_dir() / "build_info.json").read_text())
    return info


def check_build(library: Path, package: str, expected: str, info: dict[str, str]) -> None:
    """Refuse a TVM or tvm-ffi other than the one that libkvctl.so was compiled against.

    Virtual tables differ between releases, and no other check would notice.

    Parameters
    ----------
    library : pathlib.Path
        The library that would be loaded.
    package : str
        ``"tvm"`` or ``"tvm_ffi"``: the package that it belongs to.
    expected : str
        The build-id of the library that libkvctl.so was compiled against.
    info : dict[str, str]
        What :func:`build_info` returns.

    Raises
    ------
    ImportError
        If the library is missing or is another build.
    """
    if not library.exists():
        raise ImportError(f"kvctl needs {library}, which does not exist: is TVM complete?")
    found = gnu_build_id(library)
    if found != expected:
        name, distribution = ("TVM", "apache-tvm") if package == "tvm" else ("tvm-ffi", FFI_PACKAGE)
        raise ImportError(
            f"kvctl {info['kvctl']} was compiled against {name} {info[package]} (build-id "
            f"{expected}), but {library} is {name} {installed_version(library)} (build-id "
            f"{found or 'none'}). Install {distribution}=={info[package]}, or rebuild kvctl "
            "against this one: pip install --no-build-isolation --force-reinstall --no-deps ."
        )


def load() -> None:
    """Check the TVM build, then load its runtime, oneDNN where present, and libkvctl.so."""
    libraries, info = library_dir(), build_info()
    runtime = package_dir("tvm") / "lib" / "libtvm_runtime.so"
    check_build(runtime, "tvm", info["tvm_runtime_build_id"], info)
    ffi = package_dir("tvm_ffi") / "lib" / "libtvm_ffi.so"
    check_build(ffi, "tvm_ffi", info["tvm_ffi_build_id"], info)

    import tvm_ffi  # noqa: F401  (loads libtvm_ffi.so, globally)

    ctypes.CDLL(str(runtime), mode=ctypes.RTLD_GLOBAL)
    onednn = Path(sys.prefix) / "lib" / "libdnnl.so.3"
    if onednn.exists():
        ctypes.CDLL(str(onednn), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(libraries / "libkvctl.so"), mode=ctypes.RTLD_GLOBAL)


load()

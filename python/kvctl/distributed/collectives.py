"""The plugins that bring Disco's collectives, and what they need."""

from __future__ import annotations

import ctypes
from pathlib import Path

from tvm_ffi import get_global_func

from .._ffi.find_nccl import NCCL_VARIABLE, nccl_path
from .._ffi.libraries import library_dir, package_dir

#: The libraries that a plugin can be built over, and what each takes.
LIBRARIES = {
    "gloo": "processes on CPUs, over TCP",
    "nccl": "CUDA devices, over NVLink, PCIe or a network",
}
_INSTALL = {
    "gloo": "install Gloo (Debian, Ubuntu: apt install libgloo-dev), then build kvctl again",
    "nccl": "build kvctl again, without -DKVCTL_DISTRIBUTED=OFF",
}
_loaded: set[str] = set()


def for_device(device: str) -> str:
    """Return the library that connects workers on devices of a type."""
    return "nccl" if device.partition(":")[0] == "cuda" else "gloo"


def plugin_path(name: str) -> Path:
    """Return the file of a plugin, whether it was built or not."""
    return library_dir() / f"libkvctl_disco_{name}.so"


def available() -> list[str]:
    """Return the collectives that this kvctl was built with."""
    return [name for name in LIBRARIES if plugin_path(name).exists()]


def load_disco() -> None:
    """Load TVM's Disco, which is a part of its runtime that kvctl does not need otherwise."""
    if get_global_func("runtime.disco.SessionProcess", allow_missing=True) is None:
        path = package_dir("tvm") / "lib" / "libtvm_runtime_extra.so"
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def load(name: str = "gloo") -> None:
    """Register ``runtime.disco.<name>.*`` in this process.

    Parameters
    ----------
    name : {"gloo", "nccl"}
        The communication library.

    Raises
    ------
    ValueError
        If there is no such library.
    ImportError
        If kvctl was built without it, or it cannot be loaded.
    """
    if name not in LIBRARIES:
        raise ValueError(f"collectives come from {', '.join(LIBRARIES)}, not from {name!r}")
    if name in _loaded:
        return
    path = plugin_path(name)
    if not path.exists():
        raise ImportError(
            f"this kvctl was built without collectives over {name}, which several workers need: "
            f"{_INSTALL[name]} (docs/machines/distributed.md)"
        )
    load_disco()
    try:
        ctypes.CDLL(str(path), mode=ctypes.RTLD_LOCAL)
    except OSError as error:
        raise ImportError(f"collectives over {name} cannot be loaded: {error}") from None
    if name == "nccl":
        _load_nccl()
    _loaded.add(name)


def _load_nccl() -> None:
    """Have the plugin load NCCL."""
    try:
        get_global_func("runtime.disco.nccl.load_library")(nccl_path())
    except FileNotFoundError as error:
        raise ImportError(
            f"{error}: pip install nvidia-nccl-cu13, or let {NCCL_VARIABLE} name a libnccl.so.2"
        ) from None

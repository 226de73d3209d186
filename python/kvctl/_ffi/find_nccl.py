"""Where NCCL lies. Nothing here loads it, so that the doctor can ask, too."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path

#: Names another library than that of the Python package, or the system's.
NCCL_VARIABLE = "KVCTL_NCCL_LIBRARY"
_NAME = "libnccl.so.2"


def nccl_path() -> str:
    """Return what is loaded: a file, or a name that the dynamic linker looks up."""
    if path := os.environ.get(NCCL_VARIABLE):
        return path
    try:
        spec = importlib.util.find_spec("nvidia.nccl")
    except ImportError:  # there is no package nvidia
        spec = None
    for folder in (spec and spec.submodule_search_locations) or ():
        file = Path(folder) / "lib" / _NAME
        if file.exists():
            return str(file)
    return _NAME


def is_there(path: str) -> bool:
    """Return whether a library is there: a file, or a name that the dynamic linker knows."""
    if "/" in path:
        return Path(path).exists()
    folders = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    if any((Path(folder) / path).exists() for folder in folders if folder):
        return True
    try:
        known = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return False
    return path in known.stdout

"""Print TVM's folder, version and the libraries' build-ids for CMake, without importing TVM."""

import importlib.util
import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "python" / "kvctl" / "_ffi"))
from build_id import gnu_build_id  # the module that checks the same ids at import


def package_dir(name: str) -> Path:
    """Return the folder of an importable package."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"no Python package '{name}'; install third_party/requirements/build.txt")
    return Path(next(iter(spec.submodule_search_locations)))


def version_of(package: Path) -> str:
    """Return the version that a package was built with."""
    version: str = runpy.run_path(str(package / "_version.py"))["version"]
    return version


tvm, ffi = package_dir("tvm"), package_dir("tvm_ffi")
facts = (
    tvm,
    version_of(tvm),
    gnu_build_id(tvm / "lib" / "libtvm_runtime.so"),
    gnu_build_id(ffi / "lib" / "libtvm_ffi.so"),
    ffi,
    version_of(ffi),
)
print(";".join(map(str, facts)))

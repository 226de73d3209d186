"""Print the prefixes that may hold oneDNN for CMake: where its PyPI packages put their files."""

import sys
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

prefixes = [Path(sys.prefix)]
for package in ("onednn-cpu-gomp", "onednn-devel-cpu-gomp"):
    try:
        paths = files(package) or []
    except PackageNotFoundError:
        continue
    for path in paths:
        if path.name in ("libdnnl.so", "libdnnl.so.3"):
            prefixes.append(Path(path.locate()).resolve().parents[1])  # <prefix>/lib/libdnnl.so
        elif path.name == "dnnl.hpp" and path.parent.name == "dnnl":
            prefixes.append(
                Path(path.locate()).resolve().parents[3]
            )  # <prefix>/include/oneapi/dnnl
print(";".join(map(str, dict.fromkeys(prefixes))))

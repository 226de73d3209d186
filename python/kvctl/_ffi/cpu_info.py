"""What Linux says of the processor."""

from __future__ import annotations

import re
from pathlib import Path


def cpu_info(field: str) -> list[str]:
    """Return a field of /proc/cpuinfo, for each processor that has it."""
    pattern = rf"^{re.escape(field)}\s*:\s*(.*)$"
    return re.findall(pattern, Path("/proc/cpuinfo").read_text(), re.MULTILINE)


def cpu_model() -> str:
    """Return the processor's name."""
    return next(iter(cpu_info("model name")), "unknown processor")

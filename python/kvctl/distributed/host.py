"""The worker of another machine: ``python -m kvctl.distributed.host ADDRESS PORT``."""

from __future__ import annotations

import sys

from .hosts import follow

if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m kvctl.distributed.host ADDRESS PORT (the controller's)")
    follow(sys.argv[1], int(sys.argv[2]))

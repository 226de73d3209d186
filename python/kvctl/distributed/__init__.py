"""Models on several devices: one worker for each, and one logical cache over all of them.

Nothing of it is loaded for one device. See docs/machines/distributed.md.
"""

from __future__ import annotations

from .errors import WorkerError
from .runner import ModelRunner
from .session import Session

__all__ = ["ModelRunner", "Session", "WorkerError"]

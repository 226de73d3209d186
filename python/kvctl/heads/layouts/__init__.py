"""The layouts in which heads are published."""

from .layout import Layout
from .read import read_layout

__all__ = ["Layout", "read_layout"]

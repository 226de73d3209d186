"""Grammars that a text must follow: masks in the tree, and tokens without an alternative."""

from .protocol import Grammar

__all__ = ["Grammar"]

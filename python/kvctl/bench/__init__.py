"""Figures that compare: speculation measured beside plain decoding, in the field's formats."""

from .questions import Question, read_questions

__all__ = ["Question", "read_questions"]

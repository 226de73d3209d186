"""Figures that compare: speculation measured beside plain decoding, in the field's formats."""

from .questions import Question, read_questions
from .result import Configuration, Result
from .settings import Settings
from .spec import bench_spec

__all__ = ["Configuration", "Question", "Result", "Settings", "bench_spec", "read_questions"]

"""One line of the doctor's report."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Status(Enum):
    """How severe a finding is."""

    OK = "ok"
    NOTE = "note"  # a fact, or something optional that is absent
    WARN = "warn"  # works, but not as well as it could
    FAIL = "fail"  # kvctl does not work


@dataclass(frozen=True)
class Check:
    """What was checked, what was found, and what to do about a problem."""

    name: str
    status: Status
    found: str
    advice: str = ""


def ok(name: str, found: str) -> Check:
    """Return a check that found no problem."""
    return Check(name, Status.OK, found)


def note(name: str, found: str, advice: str = "") -> Check:
    """Return a check that reports a fact."""
    return Check(name, Status.NOTE, found, advice)


def warn(name: str, found: str, advice: str) -> Check:
    """Return a check that found something that costs speed or a feature."""
    return Check(name, Status.WARN, found, advice)


def fail(name: str, found: str, advice: str) -> Check:
    """Return a check that found what keeps kvctl from working."""
    return Check(name, Status.FAIL, found, advice)

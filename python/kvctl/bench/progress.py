"""What a measurement has done so far, in a file: one that was interrupted can go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .._ffi.untrusted import parse_json_object, read_text, reading
from .result import MAX_BYTES

#: Changes when a line changes its meaning.
SCHEMA = "kvctl.bench.progress/1"


class Progress:
    """The parts of a measurement, a line each behind a line that says what is measured.

    Parameters
    ----------
    path
        The file.
    resume
        Go on from what the file holds, if it is there; otherwise it begins anew.

    Attributes
    ----------
    resumed : int
        How often the measurement was taken up again, this time included.
    before : dict
        The machine's state when it first began.
    """

    def __init__(self, path: str | Path, *, resume: bool = False) -> None:
        self._path = Path(path)
        self._resume = resume
        self.resumed = 0
        self.before: dict[str, Any] = {}

    def begin(
        self, what: dict[str, Any], count: int, before: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Begin, or go on: return the parts that are there.

        Parameters
        ----------
        what
            What is measured, as JSON values; a file of another measurement is refused.
        count
            How many parts it has.
        before
            The machine's state.

        Raises
        ------
        ValueError
            If the file is damaged, or of another measurement. It is left as it is.
        """
        parts: list[dict[str, Any]] = []
        self.before = before
        if self._resume and self._path.exists():
            parts = self._read(what)
            self.resumed += 0 < len(parts) < count
        lines = [{"schema": SCHEMA, "what": what, "before": self.before, "resumed": self.resumed}]
        unfinished = self._path.with_name(self._path.name + ".new")
        unfinished.write_text("".join(map(_line, [*lines, *parts])), encoding="utf-8")
        unfinished.replace(self._path)
        return parts

    def add(self, part: dict[str, Any]) -> None:
        """Add a part that is done."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(part))

    def remove(self) -> None:
        """Remove the file: the measurement is over, and its result is written."""
        self._path.unlink(missing_ok=True)

    def _read(self, what: dict[str, Any]) -> list[dict[str, Any]]:
        name = str(self._path)
        # What stands behind the last line's end was cut when the measurement was.
        lines = read_text(self._path, max_bytes=MAX_BYTES).split("\n")[:-1]
        if not lines:
            raise ValueError(f"{name} is damaged: it has no whole line")
        first, *parts = (parse_json_object(line, name) for line in lines)
        if first.get("schema") != SCHEMA:
            raise ValueError(f"{name} is of schema {first.get('schema')!r}, not {SCHEMA!r}")
        with reading(name):
            # Older files do not name the library, nor those of drafters.
            begun = {key: what.get(key) for key in ("library", "drafters")} | first["what"]
            differs = [key for key in what if begun.get(key) != what[key]]
            if differs:
                raise ValueError(
                    f"another measurement was interrupted, with other {', '.join(differs)}; "
                    "begin anew without resuming, or write elsewhere"
                )
            self.before = dict(first["before"])
            self.resumed = int(first["resumed"])
        return parts


def _line(content: dict[str, Any]) -> str:
    return json.dumps(content, allow_nan=False) + "\n"

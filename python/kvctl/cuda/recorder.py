"""What records a step's work on a device and replays it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol


class Recording(Protocol):
    """The work of one step, recorded."""

    def replay(self, inputs: Sequence[Any], stream: int) -> Any:
        """Do the work on other inputs of the same shapes.

        Parameters
        ----------
        inputs : sequence of tensor
            The step's inputs. They are copied to where the recorded work reads them.
        stream : int
            The ``cudaStream_t`` on which the step began.

        Returns
        -------
        Any
            What the step returned when it was recorded, overwritten.
        """


class Recorder(Protocol):
    """Records steps with the graphs of one library."""

    def shapes(self, inputs: Sequence[Any]) -> Hashable:
        """Return what a recording depends on: the inputs' shapes and types.

        Raises
        ------
        TypeError
            If an input is no tensor.
        ValueError
            If another cache's step surrounds the call.
        """

    def record(self, step: Callable[..., Any], inputs: Sequence[Any], stream: int) -> Recording:
        """Record a step's work. Its result is not computed before a replay."""

"""Sequences of a check: they go when it is over."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..engine.protocol import Runner


class Sequences:
    """Sequences with prompts, for as long as a block runs."""

    def __init__(self, runner: Runner, prompts: dict[int, list[int]]) -> None:
        self._runner = runner
        self._prompts = prompts

    def __enter__(self) -> None:
        for id, tokens in self._prompts.items():
            self._runner.cache.add_sequence(id)
            self._runner.prefill([id], [tokens])

    def __exit__(self, *_: object) -> None:
        for id in self._prompts:
            self._runner.cache.remove_sequence(id)

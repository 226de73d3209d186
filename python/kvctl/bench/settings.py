"""How the answers of a measurement are generated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Settings:
    """How answers are generated, whatever the configuration.

    Attributes
    ----------
    max_new_tokens : int
        Of one turn.
    temperature : float
        0 is greedy.
    seed : int
        Of the random numbers; each turn of each question has its own.
    passes : int
        How often everything is measured. Every pass has new drafters.
    raw : bool
        Continue the questions as plain text, without the chat template.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0
    passes: int = 1
    raw: bool = False

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "passes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")


def describe(settings: dict[str, Any]) -> str:
    """Return the settings of a result as a reader of a report wants them."""
    how = "greedy" if settings["temperature"] == 0 else f"temperature {settings['temperature']:g}"
    passes = f"least of {settings['passes']} passes" if settings["passes"] > 1 else "one pass"
    return f"{how}, up to {settings['max_new_tokens']} new tokens a turn, {passes}"

"""Whose tensors are which parameter of a head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...models.checkpoints.config import DecoderConfig
from ...models.checkpoints.safetensors_file import SafetensorsFile

Files = Mapping[str, SafetensorsFile]


@dataclass(frozen=True)
class Source:
    """Where a parameter comes from: tensors one below the other, and perhaps some of the numbers.

    The target's tensors are marked by "target:".
    """

    names: tuple[str, ...]
    columns: tuple[int, int] | None = None
    rows: tuple[int, ...] | None = None


@dataclass
class Layout:
    """Whose tensors are which parameter; tensors that are there and not needed are ignored."""

    parameters: dict[str, Source] = field(default_factory=dict)
    ignored: set[str] = field(default_factory=set)

    def sources(self, parameter: str) -> Source:
        """Return where a parameter comes from."""
        return self.parameters[parameter]

    def tensors(self) -> list[str]:
        """Return the names of all tensors that are read."""
        return list(dict.fromkeys(n for one in self.parameters.values() for n in one.names))

    @staticmethod
    def is_own(name: str) -> bool:
        """Whether a tensor is the head's own."""
        return not name.startswith("target:")

    def add(
        self,
        parameter: str,
        *names: str,
        columns: tuple[int, int] | None = None,
        rows: tuple[int, ...] | None = None,
    ) -> None:
        """Say where a parameter comes from."""
        self.parameters[parameter] = Source(names, columns, rows)


def add_target_norm(layout: Layout, target: DecoderConfig, parameter: str, name: str) -> None:
    """Take a norm of the target, with its bias where it has one."""
    for suffix in ("weight", "bias") if target.norm == "layer" else ("weight",):
        layout.add(f"{parameter}.{suffix}", f"target:{name}.{suffix}")

"""A group of commands one of which needs no name."""

from __future__ import annotations

from typing import Any

import typer.core


class DefaultGroup(typer.core.TyperGroup):
    """A group that takes what names none of its commands as the arguments of its default one.

    Subclasses set `default`.
    """

    default = ""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default command's name in front where no command is named."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [self.default, *args]
        return super().parse_args(ctx, args)

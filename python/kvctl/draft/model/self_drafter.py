"""Drafting with the target itself, through less of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...verification import Sampling
from .growing_drafter import GrowingDrafter
from .own_sequences import OwnSequences
from .view import View


class SelfDrafter(GrowingDrafter):
    """The same weights and cache draft, through a window, chosen pages or part of the layers.

    A window with sinks is StreamingLLM's view (arXiv 2309.17453), which MagicDec (2408.11049) and
    TriForce (2404.11912) draft with; the first layers alone are an early exit (LayerSkip,
    2404.16710; Draft & Verify, 2309.08168); `select` chooses pages as Quest does. The rows of a
    draft are pending in the target's cache and dropped before verification, so nothing that was
    left out reaches the text.

    Parameters
    ----------
    runner : kvctl.engine.Runner
        The target, the runner that generates.
    window, sinks
        Attend to so many last tokens, and so many first ones.
    layers
        Run so many layers only; the runner must be able to ("layers" in its abilities).
    select
        A page selector, as ``kvctl.PagedKVCache.select_pages`` takes it; it is in force while
        drafting only, in place of one that was set before.
    length, max_length, branching, beam, how, sampling
        See `ModelDrafter`.

    Raises
    ------
    ValueError
        If nothing is left out, or a size is out of range.
    NotImplementedError
        If `layers` is given and the runner runs all layers or none.

    Examples
    --------
    >>> drafter = kvctl.draft.SelfDrafter(runner, window=256, length=4)
    >>> kvctl.generate(runner, prompt, drafter=drafter)
    """

    def __init__(
        self,
        runner: Any,
        *,
        window: int | None = None,
        sinks: int = 4,
        layers: int | None = None,
        select: Callable[[int, Any], Sequence[Any]] | None = None,
        length: int | None = None,
        max_length: int = 8,
        branching: int | Sequence[int] = 1,
        beam: int | None = None,
        how: str = "deterministic",
        sampling: Sampling | None = None,
    ) -> None:
        self.view = View(window, sinks, layers, select)
        if layers is not None and "layers" not in runner.abilities:
            raise NotImplementedError(
                f"layers={layers} needs a runner that runs part of its layers; a compiled model "
                "does after 'kvctl compile --exit-layers'"
            )
        super().__init__(
            OwnSequences(runner, self.view),
            runner,
            length=length,
            max_length=max_length,
            branching=branching,
            beam=beam,
            how=how,
            sampling=sampling,
        )

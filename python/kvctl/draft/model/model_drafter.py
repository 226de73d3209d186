"""Drafting with a second, smaller model."""

from __future__ import annotations

from collections.abc import Sequence

from ...verification import Sampling
from ..identity import identity_of
from .draft_sequences import DraftSequences
from .growing_drafter import GrowingDrafter
from .mapped_runner import MappedRunner
from .runner import DraftRunner
from .vocabulary_map import VocabularyMap


class ModelDrafter(GrowingDrafter):
    """Another model drafts (arXiv 2211.17192, 2302.01318).

    The tree is grown level by level, one forward of the draft model for each level but the last.
    Its shape is a matter of two parameters: ``branching=1`` is a chain; ``(4, 1, 1)`` four paths
    from the root on; ``(4, 2, 1)`` a tree of 4, 8 and 8 nodes; with ``beam=8`` only the 8 best
    nodes of a level are extended, of which `branching` children each are candidates (EAGLE-2's
    expansion, arXiv 2406.16858; the loop keeps the candidates that pay).

    The draft model's cache stays in step: what was accepted is committed, the rest dropped, so that
    after each round it holds the text as a prefill of it would.

    Parameters
    ----------
    runner
        The draft model, any `kvctl.engine.Runner` but the target's. Its cache is used for sequences
        of the drafter's own; give it room for the batch.
    length
        Depth of the tree, always; without a beam all of it is verified. By default at most
        `max_length`: deterministic drafts go on only while another level promises to pay, and where
        drafting does not pay at all, most rounds go without it.
    max_length
        The greatest depth where `length` is not given.
    branching
        Children of each node that is extended; one number, or one for each level, of which the last
        counts for deeper levels too.
    beam
        Extend only so many nodes of a level. For deterministic drafts.
    how
        "deterministic": the most likely tokens. They suit every rule of temperature 0 and
        "target_only". "independent", "without_replacement" or "coupled": drawn at random from the
        draft model's distribution, for the rules that need it; see `kvctl.draft.sample`.
    sampling
        How the draft model's tokens are drawn; by default as the text's are.
    vocabulary
        Where the draft model's vocabulary is not the target's: what they share.

    Raises
    ------
    ValueError
        If a size is out of range, `how` is unknown, or `beam` goes with random draws.

    Examples
    --------
    >>> drafter = kvctl.draft.ModelDrafter(kvctl.ModelRunner.load("SmolLM2-135M"))
    >>> kvctl.generate(kvctl.ModelRunner.load("SmolLM2-1.7B"), prompt, drafter=drafter)
    """

    def __init__(
        self,
        runner: DraftRunner,
        *,
        length: int | None = None,
        max_length: int = 8,
        branching: int | Sequence[int] = 1,
        beam: int | None = None,
        how: str = "deterministic",
        sampling: Sampling | None = None,
        vocabulary: VocabularyMap | None = None,
    ) -> None:
        self.identity = identity_of(runner)
        if vocabulary is not None:
            runner = MappedRunner(runner, vocabulary)
        super().__init__(
            DraftSequences(runner),
            runner,
            length=length,
            max_length=max_length,
            branching=branching,
            beam=beam,
            how=how,
            sampling=sampling,
        )

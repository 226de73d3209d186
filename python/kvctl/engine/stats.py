"""The statistics of a generation: speed, acceptance, and the times of its parts."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Statistics:
    """Counts and seconds of one generation.

    A *round* forwards the last token of the text, and with it the drafts of a speculative round.
    Its time is in four parts: drafting, the model's forward, verification (or sampling), and the
    commit that keeps what was accepted and rolls back the rest.
    """

    prompt_tokens: int = 0
    new_tokens: int = 0
    rounds: int = 0
    speculative_rounds: int = 0
    prefill_seconds: float = 0.0
    #: Drafter's start: indexing the prompt and, at the first generation, measuring costs.
    start_seconds: float = 0.0
    draft_seconds: float = 0.0
    forward_seconds: float = 0.0
    verify_seconds: float = 0.0
    rollback_seconds: float = 0.0
    #: ``drafted[d]``: rounds that drafted at least one token at depth d + 1 of their tree.
    drafted: list[int] = field(default_factory=list)
    #: ``accepted[d]``: rounds whose accepted path reached depth d + 1.
    accepted: list[int] = field(default_factory=list)

    @property
    def decode_seconds(self) -> float:
        """The time of all rounds."""
        return (
            self.draft_seconds + self.forward_seconds + self.verify_seconds + self.rollback_seconds
        )

    @property
    def tokens_per_second(self) -> float:
        """Tokens emitted by the rounds per second of theirs; the prompt's first is not among them.

        NaN where there were no rounds.
        """
        if self.rounds == 0:
            return float("nan")
        return (self.new_tokens - 1) / self.decode_seconds

    @property
    def mean_accepted_length(self) -> float:
        """Mean number of accepted drafts in a speculative round; 0 where there were none."""
        if self.speculative_rounds == 0:
            return 0.0
        return sum(self.accepted) / self.speculative_rounds

    @property
    def tokens_per_round(self) -> float:
        """Mean number of tokens that a forward of the model emitted; NaN without rounds."""
        return (self.new_tokens - 1) / self.rounds if self.rounds else float("nan")

    @property
    def acceptance_by_position(self) -> list[float]:
        """Of the rounds that drafted to depth d + 1, the share that accepted so far."""
        return [a / d for a, d in zip(self.accepted, self.drafted, strict=True)]

    def count_draft(self, drafted_depth: int, accepted_depth: int) -> None:
        """Add a speculative round."""
        self.speculative_rounds += 1
        while len(self.drafted) < drafted_depth:
            self.drafted.append(0)
            self.accepted.append(0)
        for depth in range(drafted_depth):
            self.drafted[depth] += 1
            self.accepted[depth] += depth < accepted_depth

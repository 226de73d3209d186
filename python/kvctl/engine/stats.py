"""The statistics of a generation: speed, acceptance, and the times of its parts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from itertools import zip_longest


@dataclass
class Statistics:
    """Counts and seconds of one generation.

    A *round* forwards the last token of the text, and with it the drafts of a speculative round.
    Its time is in four parts: drafting, the model's forward, verification (or sampling), and the
    commit that keeps what was accepted and rolls back the rest. A round that several texts share
    gives each an equal part of its times, so those of all texts add up to the time of the whole:
    `merge` does.
    """

    #: How many texts these are the statistics of.
    texts: int = 1
    prompt_tokens: int = 0
    new_tokens: int = 0
    rounds: int = 0
    speculative_rounds: int = 0
    #: Tokens that the speculative rounds emitted.
    speculative_tokens: int = 0
    prefill_seconds: float = 0.0
    #: Drafter's start: indexing the prompt, and whatever else a drafter does before it drafts.
    start_seconds: float = 0.0
    draft_seconds: float = 0.0
    forward_seconds: float = 0.0
    verify_seconds: float = 0.0
    rollback_seconds: float = 0.0
    #: Tokens that were forwarded again because their text had to wait for room, and the time.
    replayed_tokens: int = 0
    replay_seconds: float = 0.0
    #: Tokens that a grammar left no choice of, and that the loop drafted instead of the drafter;
    #: below they count as drafts.
    forced_tokens: int = 0
    #: ``drafted[d]``: rounds that drafted at least one token at depth d + 1 of their tree.
    drafted: list[int] = field(default_factory=list)
    #: ``reached[d]``: rounds where a draft at depth d + 1 was up for acceptance: all before it on
    #: its path were accepted.
    reached: list[int] = field(default_factory=list)
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
        """Tokens behind each text's first one, per second of everything behind the prefill.

        That is the rounds, the drafter's start, and what had to run again. Of a text in a batch it
        is what the text would have had by itself at the batch's speed; of merged statistics, the
        throughput. NaN where there were no rounds.
        """
        if self.rounds == 0:
            return float("nan")
        seconds = self.start_seconds + self.decode_seconds + self.replay_seconds
        return (self.new_tokens - self.texts) / seconds

    @property
    def mean_acceptance_length(self) -> float:
        """Mean tokens that a speculative round emits, the one behind the accepted drafts included.

        This is the acceptance length that papers report, and what `AcceptanceStats.mean_emitted`
        is for speculative rounds. NaN where there were none.
        """
        if self.speculative_rounds == 0:
            return float("nan")
        return self.speculative_tokens / self.speculative_rounds

    @property
    def mean_accepted_drafts(self) -> float:
        """Mean number of accepted drafts in a speculative round; 0 where there were none."""
        if self.speculative_rounds == 0:
            return 0.0
        return sum(self.accepted) / self.speculative_rounds

    @property
    def mean_accepted_length(self) -> float:
        """Another name of `mean_accepted_drafts`; not the acceptance length of papers."""
        return self.mean_accepted_drafts

    @property
    def tokens_per_round(self) -> float:
        """Mean number of tokens that a round emitted for a text; NaN without rounds."""
        return (self.new_tokens - self.texts) / self.rounds if self.rounds else float("nan")

    @property
    def acceptance_by_position(self) -> list[float]:
        """Of the rounds that reached depth d + 1, the share that accepted a draft there.

        Conditional on being reached, as `AcceptanceStats.rates` is; NaN where none was.
        """
        pairs = zip(self.accepted, self.reached, strict=True)
        return [a / n if n else float("nan") for a, n in pairs]

    @property
    def cumulative_acceptance(self) -> list[float]:
        """Of the rounds that drafted to depth d + 1, the share that accepted that far."""
        return [a / d for a, d in zip(self.accepted, self.drafted, strict=True)]

    @classmethod
    def merge(cls, many: Iterable[Statistics]) -> Statistics:
        """Return the statistics of several texts together, of one batch or of several."""
        total = cls(texts=0)
        for one in many:
            for entry in fields(cls):
                mine, other = getattr(total, entry.name), getattr(one, entry.name)
                if isinstance(mine, list):
                    pairs = zip_longest(mine, other, fillvalue=0)
                    setattr(total, entry.name, [a + b for a, b in pairs])
                else:
                    setattr(total, entry.name, mine + other)
        return total

    def count_draft(self, drafted: int, reached: int, accepted: int, emitted: int) -> None:
        """Add a speculative round: three depths, and how many tokens it emitted."""
        self.speculative_rounds += 1
        self.speculative_tokens += emitted
        while len(self.drafted) < drafted:
            self.drafted.append(0)
            self.reached.append(0)
            self.accepted.append(0)
        for depth in range(drafted):
            self.drafted[depth] += 1
            self.reached[depth] += depth < reached
            self.accepted[depth] += depth < accepted

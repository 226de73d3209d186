"""One text while it is generated."""

from __future__ import annotations

from ..draft import Request
from .arguments import TextArguments
from .generation import FinishReason, Generation
from .grammar.text_grammar import TextGrammar
from .stats import Statistics


class TextState:
    """A text, what limits it, and why it ended. The cache holds all of it but its last token.

    Attributes
    ----------
    request
        The text as a drafter sees it.
    tokens
        Prompt and text so far.
    grammar
        What the text must follow; it stands behind the last token that `cut` returned.
    drafted
        Whether a drafter has started it.
    """

    def __init__(
        self,
        id: int,
        asked: TextArguments,
        room: int,
        limit: FinishReason,
        grammar: TextGrammar | None = None,
        *,
        log_probs: bool = False,
    ) -> None:
        self.asked = asked
        self.grammar = grammar
        self.sampling = asked.sampling
        self.penalized = asked.sampling.penalizes
        self.seq_id = asked.seq_id
        self.tokens = list(asked.prompt)
        self.request = Request(
            id=id,
            tokens=self.tokens,
            prompt_length=len(asked.prompt),
            seq_id=asked.seq_id,
            sampling=asked.sampling,
            seed=asked.seed,
            request_id=asked.request_id,
        )
        self.drafted = False
        self.finished: FinishReason | None = None
        self.stats = Statistics(prompt_tokens=len(asked.prompt))
        self.room = room
        self._limit: FinishReason = limit
        self._log_probs: list[float] | None = [] if log_probs else None

    @property
    def begun(self) -> bool:
        """Whether any token was emitted yet."""
        return len(self.tokens) > self.request.prompt_length

    def cut(self, emitted: list[int]) -> list[int]:
        """Return the tokens up to the first one that ends the text; remember why it does."""
        stop, ends, grammar = self.asked.stop, self.asked.ends, self.grammar
        if not ends and grammar is None and stop.isdisjoint(emitted):
            return emitted
        for i, token in enumerate(emitted):
            over = grammar is not None and grammar.advance(token)
            asked = any([end(token) for end in ends])  # each sees every token
            if token in stop:
                self.finished = "stop_token"
            elif asked:
                self.finished = "stop_string"
            elif over:
                self.finished = "grammar"
            if self.finished is not None:
                return emitted[: i + 1]
        return emitted

    def take(self, emitted: list[int], log_probs: list[float] | None) -> None:
        """Append what `cut` returned; a text whose limit is reached has ended."""
        self.tokens += emitted
        self.stats.new_tokens += len(emitted)
        self.room -= len(emitted)
        if self._log_probs is not None and log_probs is not None:
            self._log_probs += log_probs[: len(emitted)]
        if self.finished is None and self.room == 0:
            self.finished = self._limit

    def tell(self, emitted: list[int]) -> None:
        """Call the user's function with the new tokens."""
        if self.asked.on_tokens is not None:
            self.asked.on_tokens(emitted)

    def generation(self) -> Generation:
        """Return the text that has ended."""
        assert self.finished is not None
        new = self.tokens[self.request.prompt_length :]
        return Generation(new, self.finished, self.stats, self._log_probs)

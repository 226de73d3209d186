"""Which texts run, which wait for room, and when they leave."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from .._ffi.errors import OutOfPagesError
from .when_free import when_free

if TYPE_CHECKING:
    from .drafting import Drafting
    from .protocol import Runner
    from .rounds import Rounds
    from .text_state import TextState

# Tokens that must stay free for each text that runs when another one enters: otherwise it would
# have to leave soon.
_HEADROOM = 32


class Batch:
    """Texts that share the rounds of one runner.

    Texts enter in their order, as sequences and pages are free, and leave when they end. Where
    pages run out, the text that entered last leaves the cache and waits; when it comes back, its
    tokens are forwarded again, and nothing of it is lost.

    Parameters
    ----------
    most
        The most texts that may run at once; the cache may have room for fewer.
    """

    def __init__(
        self,
        runner: Runner,
        rounds: Rounds,
        drafting: Drafting,
        texts: Sequence[TextState],
        most: int | None,
    ) -> None:
        self._runner = runner
        self._rounds = rounds
        self._drafting = drafting
        self._waiting = deque(texts)
        self._running: list[TextState] = []
        self._window = runner.sliding_window_size
        self._most = len(texts) if most is None else min(most, len(texts))

    def run(self) -> None:
        """Run rounds until every text has ended.

        Whatever happens, no text's sequence stays in the cache, and the drafter has forgotten all.
        """
        everything = list(self._waiting)
        try:
            while self._waiting or self._running:
                self._enter()
                self._leave([text for text in self._running if text.finished is not None])
                if self._running:
                    self._rounds.run(list(self._running), self._wait)
                    self._leave([text for text in self._running if text.finished is not None])
        finally:
            self._remove(everything)

    def _enter(self) -> None:
        """Let texts enter, in their order, as long as there is room."""
        new: list[TextState] = []
        promised = 0  # tokens of texts that entered, but were not forwarded yet
        while self._waiting and len(self._running) + len(new) < self._most:
            text = self._waiting[0]
            others = len(self._running) + len(new)
            free = self._runner.cache.num_available_tokens - promised
            length = min(len(text.tokens), self._window or len(text.tokens))
            alone = others == 0
            if not (alone or length + _HEADROOM * (others + 1) <= free):
                break
            if not self._add(text, alone=alone):
                break
            self._waiting.popleft()
            new.append(text)
            promised += length
        while new and not self._forward(new):
            if len(new) + len(self._running) == 1:
                raise OutOfPagesError(
                    f"the {len(new[0].tokens)} tokens of a text do not fit into the cache's free "
                    "pages, though no other text runs"
                )
            self._runner.cache.remove_sequence(new[-1].seq_id)
            self._waiting.appendleft(new.pop())

    def _add(self, text: TextState, *, alone: bool) -> bool:
        """Add a text's sequence; return whether the cache takes another one."""
        try:
            self._runner.cache.add_sequence(text.seq_id)
        except (ValueError, RuntimeError):  # RuntimeError: a full recurrent state
            if alone:
                raise
            return False
        return True

    def _forward(self, new: list[TextState]) -> bool:
        """Forward the tokens of texts that enter, of prompts together; return whether they fit.

        `new` is left with the texts that do not run yet.
        """
        while new:
            count = next((i for i, text in enumerate(new) if text.begun), len(new))
            fits = self._rounds.prefill(new[:count]) if count else self._rounds.replay(new[0])
            if not fits:
                return False
            self._running += new[: max(count, 1)]
            del new[: max(count, 1)]
        return True

    def _wait(self, text: TextState) -> None:
        """Take a text out that is the first to come back."""
        self._leave([text])
        self._waiting.appendleft(text)

    def _leave(self, texts: Sequence[TextState]) -> None:
        """Take texts out of the batch."""
        for text in texts:
            self._running.remove(text)
            self._drafting.finish(text)
            self._runner.cache.remove_sequence(text.seq_id)

    def _remove(self, texts: Sequence[TextState]) -> None:
        """Take everything out that is still there, whatever the drafter raises meanwhile."""
        with ExitStack() as stack:
            for text in texts:
                stack.callback(self._remove_sequence, text.seq_id)
                stack.callback(self._drafting.finish, text)
                stack.callback(self._drafting.finish, text)  # one of them may be interrupted

    def _remove_sequence(self, seq_id: int) -> None:
        """Remove a sequence; wait for a thread that uses the cache too, which it may not."""
        cache = self._runner.cache
        if seq_id not in cache:
            return None
        return when_free(lambda: cache.remove_sequence(seq_id))

"""The decoding loop: plain and speculative, greedy and sampled, over one sequence."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from operator import index
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .._ffi.integers import to_int64
from ..tree import TokenTree
from ..verification import Sampling, verify
from .stats import Statistics

if TYPE_CHECKING:
    from ..draft import Drafter
    from .runner import ModelRunner


@dataclass(frozen=True)
class Generation:
    """What was generated.

    Attributes
    ----------
    tokens
        The new tokens; the one that ended the text, where one did, is the last of them.
    stopped
        Whether a stop token or `stop_when` ended the text, and not a limit.
    statistics
        Counts and times.
    """

    tokens: list[int]
    stopped: bool
    statistics: Statistics


def generate(
    runner: ModelRunner,
    prompt_tokens: Sequence[int],
    *,
    max_new_tokens: int = 256,
    drafter: Drafter | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    request_id: int = 0,
    stop: Collection[int] = (),
    seq_id: int = 0,
    stop_when: Callable[[int], bool] | None = None,
    on_tokens: Callable[[list[int]], None] | None = None,
) -> Generation:
    """Continue a prompt.

    With a drafter the tokens are the same, only sooner: greedily because verification compares
    with the target's own choice; sampled because the draw at each position uses the same random
    numbers with and without drafts (the rule is "target_only"). This presumes equal logits: a model
    whose logits depend on the number of rows of a forward can choose differently near a tie.

    Parameters
    ----------
    runner
        The model and its cache.
    prompt_tokens
        (n,) at least one token.
    max_new_tokens
        Stop after this many, or when the cache is full.
    drafter
        Where drafts come from; None decodes plainly.
    sampling
        How tokens are drawn; None takes the most probable one. Its stop tokens end the text too.
    seed, request_id
        Name the random numbers.
    stop
        Tokens that end the text.
    seq_id
        An id that the cache does not have; removed again when this returns or raises.
    stop_when
        Called with each new token in order, a stop token too; true ends the text with that token.
        It must not depend on the round that a token came in. A stop string is found so: see
        `kvctl.text.ModelText.stop_check`.
    on_tokens
        Called with the new tokens of each round as they come.

    Returns
    -------
    Generation
        The tokens and what it took to make them.

    Raises
    ------
    ValueError
        If the prompt is empty, has a token outside the vocabulary or does not fit the cache, or
        the id is taken.
    """
    loop = _Loop(runner, seq_id, sampling, seed, request_id, stop, stop_when)
    return loop.run(prompt_tokens, max_new_tokens, drafter, on_tokens)


class _Loop:
    """The loop over one sequence. The cache holds all of the text but its last token."""

    def __init__(
        self,
        runner: ModelRunner,
        seq_id: int,
        sampling: Sampling | None,
        seed: int,
        request_id: int,
        stop: Collection[int],
        stop_when: Callable[[int], bool] | None,
    ) -> None:
        if sampling is not None and not isinstance(sampling, Sampling):
            raise TypeError(f"sampling must be kvctl.Sampling, got {type(sampling).__name__}")
        self._runner = runner
        self._seq_id = seq_id
        self._sampling = sampling
        self._seed = seed
        self._request_id = request_id
        self._stop = frozenset(to_int64(stop, "stop").tolist())
        self._stop_when = stop_when
        self._penalized = False
        if sampling is not None:
            self._stop |= frozenset(to_int64(sampling.stop_tokens, "stop_tokens").tolist())
            penalties = (sampling.presence_penalty, sampling.frequency_penalty)
            self._penalized = sampling.repetition_penalty != 1.0 or any(penalties)
        self._text: list[int] = []
        self._stats = Statistics()

    def run(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        drafter: Drafter | None,
        on_tokens: Callable[[list[int]], None] | None,
    ) -> Generation:
        """Prefill, then run rounds until a stop token or a limit ends the text."""
        prompt = to_int64(prompt, "prompt_tokens").tolist()
        room = self._check(prompt, index(max_new_tokens))
        cache, stats = self._runner.cache, self._stats
        cache.add_sequence(self._seq_id)
        try:
            self._text = list(prompt)
            stats.prompt_tokens = len(prompt)
            emitted = self._prefill()
            if drafter is not None and room > 1:
                begin = perf_counter()
                drafter.start([*self._text, *emitted], self._measure)
                stats.start_seconds = perf_counter() - begin
            while True:
                emitted, stopped = self._cut(emitted)
                self._text += emitted
                stats.new_tokens += len(emitted)
                room -= len(emitted)
                if on_tokens is not None:
                    on_tokens(emitted)
                if stopped or room == 0:
                    tokens = self._text[len(prompt) :]
                    return Generation(tokens, stopped, stats)
                emitted = self._round(drafter, room - 1)
        finally:
            cache.remove_sequence(self._seq_id)

    def _check(self, prompt: Sequence[int], max_new_tokens: int) -> int:
        """Return how many tokens may be generated."""
        runner = self._runner
        if len(prompt) == 0:
            raise ValueError("the prompt must have at least one token")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        lowest, highest = min(prompt), max(prompt)
        if lowest < 0 or highest >= runner.vocab_size:
            token = lowest if lowest < 0 else highest
            raise ValueError(
                f"the prompt has token {token}; the vocabulary is 0 to {runner.vocab_size - 1}"
            )
        capacity = runner.cache.num_available_tokens
        context = int(runner.metadata.get("context_window_size", -1))
        if context > 0:
            capacity = min(capacity, context)
        if len(prompt) > capacity:
            raise ValueError(
                f"the prompt has {len(prompt)} tokens; there is room for {capacity} in the cache"
            )
        # The last token of the text is never forwarded, so it needs no room.
        return min(max_new_tokens, capacity - len(prompt) + 1)

    def _prefill(self) -> list[int]:
        begin = perf_counter()
        logits = self._runner.prefill([self._seq_id], [self._text])
        emitted, _ = self._decide(logits, TokenTree.chain(self._text[-1:]))
        self._stats.prefill_seconds = perf_counter() - begin
        return emitted

    def _round(self, drafter: Drafter | None, limit: int) -> list[int]:
        """Draft at most `limit` nodes, forward, decide, keep what was accepted."""
        stats = self._stats
        begin = perf_counter()
        if drafter is None:
            tree = TokenTree.chain(self._text[-1:])
        else:
            tree = drafter.propose(min(limit, self._runner.prefill_chunk_size - 1))
        drafted = perf_counter()
        logits = self._forward(tree)
        forwarded = perf_counter()
        emitted, kept = self._decide(logits, tree)
        verified = perf_counter()
        if len(tree) > 1:
            self._runner.cache.commit([self._seq_id], [kept])
        done = perf_counter()
        stats.rounds += 1
        stats.draft_seconds += drafted - begin
        stats.forward_seconds += forwarded - drafted
        stats.verify_seconds += verified - forwarded
        stats.rollback_seconds += done - verified
        if len(tree) > 1:
            stats.count_draft(int(tree.depths.max()), len(kept) - 1)
        if drafter is not None:
            drafter.observe(emitted, done - drafted)
            stats.draft_seconds += perf_counter() - done
        return emitted

    def _forward(self, tree: TokenTree) -> Any:
        """Return a row of logits per row of the tree; drafts leave its rows pending."""
        if len(tree) == 1:
            return self._runner.decode([self._seq_id], tree.tokens)
        return self._runner.verify([self._seq_id], [tree])

    def _decide(self, logits: Any, tree: TokenTree) -> tuple[list[int], list[int]]:
        """Return the tokens that follow the root, and the pending rows to keep."""
        result = verify(
            logits,
            [tree],
            rule="greedy" if self._sampling is None else "target_only",
            drawn="deterministic",
            sampling=self._sampling,
            seed=self._seed,
            request_ids=[self._request_id],
            root_positions=[len(self._text) - 1],
            history=[self._text[:-1]] if self._penalized else None,
        )
        return result.tokens[0], result.kept[0]

    def _cut(self, emitted: list[int]) -> tuple[list[int], bool]:
        """Return the tokens up to the first one that ends the text, and whether there was one."""
        for i, token in enumerate(emitted):
            asked = self._stop_when is not None and self._stop_when(token)
            if asked or token in self._stop:
                return emitted[: i + 1], True
        return emitted, False

    def _measure(self, rows: int) -> float:
        """Time a round of that many rows behind the present context, and undo it."""
        cache, root = self._runner.cache, self._text[-1]
        space = min(cache.num_available_tokens, self._runner.prefill_chunk_size)
        fitting = max(1, min(rows, space))
        begin = perf_counter()
        tree = TokenTree.chain([root] * fitting)
        self._decide(self._forward(tree), tree)
        if fitting == 1:
            cache.popn(self._seq_id, 1)
        else:
            cache.abort([self._seq_id])
        # Rows that do not fit are never drafted; for them this estimate is never too low.
        return (perf_counter() - begin) * rows / fitting

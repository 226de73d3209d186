"""The decoding loop: plain and speculative, greedy and sampled, over one sequence."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from operator import index
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .._ffi.integers import to_int64
from ..draft import Budget, Draft, Request, RoundResult
from ..tree import TokenTree
from ..verification import Sampling, Verification, verify
from .costs import cost_of
from .generation import FinishReason, Generation
from .loop_checks import check_drafts, room_for, slides
from .stats import Statistics

if TYPE_CHECKING:
    from ..draft import Drafter
    from .protocol import Runner


def generate(
    runner: Runner,
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
        Stop after this many, or when the model's context window or the cache is full. A model
        with a sliding window goes on: it evicts old tokens.
    drafter
        Where drafts come from; None decodes plainly.
    sampling
        How tokens are drawn; None takes the most probable one. Its stop tokens end the text too.
    seed, request_id
        Name the random numbers.
    stop
        Tokens that end the text. What was drafted behind one is neither counted nor learnt from.
    seq_id
        An id that the cache does not have; removed again when this returns or raises.
    stop_when
        Called with each new token in order, a stop token too; true ends the text with that token.
        It must not depend on the round that a token came in. A stop string is found so: see
        `kvctl.text.ModelText.stop_check`. Where it ends the text at a token that is not one of
        `stop`, the finish reason is "stop_string".
    on_tokens
        Called with the new tokens of each round as they come.

    Returns
    -------
    Generation
        The tokens, why the text ended, and what it took to make them.

    Raises
    ------
    ValueError
        If the prompt is empty, has a token outside the vocabulary or does not fit the model's
        context window or the cache; if the id is taken; if a tree of the drafter has another root
        than the last token of the text, more nodes than its limit, or tokens outside the
        vocabulary. The sequence is removed in every case.
    TypeError
        If the drafter proposes something else than a list of `kvctl.draft.Draft`.
    """
    loop = _Loop(runner, seq_id, sampling, seed, request_id, stop, stop_when)
    return loop.run(prompt_tokens, max_new_tokens, drafter, on_tokens)


class _Loop:
    """The loop over one sequence. The cache holds all of the text but its last token."""

    def __init__(
        self,
        runner: Runner,
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
        self._seed = seed
        self._request_id = request_id
        self._stop = frozenset(to_int64(stop, "stop").tolist())
        self._stop_when = stop_when
        self._penalized = False
        self._rule = "greedy"
        if sampling is None:
            sampling = Sampling(temperature=0.0)
        else:
            self._rule = "target_only"
            self._stop |= frozenset(to_int64(sampling.stop_tokens, "stop_tokens").tolist())
            penalties = (sampling.presence_penalty, sampling.frequency_penalty)
            self._penalized = sampling.repetition_penalty != 1.0 or any(penalties)
        # Ids outside the vocabulary are never emitted.
        stops = sorted(token for token in self._stop if 0 <= token < runner.vocab_size)
        self._sampling: Sampling = replace(sampling, stop_tokens=stops)
        self._finished: FinishReason | None = None
        self._slides = slides(runner)
        self._text: list[int] = []
        self._stats = Statistics()
        self._budget = Budget(cost_of(runner))
        self._request: Request | None = None

    def run(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        drafter: Drafter | None,
        on_tokens: Callable[[list[int]], None] | None,
    ) -> Generation:
        """Prefill, then run rounds until a stop token or a limit ends the text."""
        prompt = to_int64(prompt, "prompt_tokens").tolist()
        room, limit = room_for(self._runner, prompt, index(max_new_tokens))
        cache, stats = self._runner.cache, self._stats
        cache.add_sequence(self._seq_id)
        try:
            self._text = list(prompt)
            stats.prompt_tokens = len(prompt)
            emitted = self._prefill()
            self._text += emitted
            if drafter is not None and room > 1 and self._finished is None:
                self._start(drafter, len(prompt))
            while True:
                stats.new_tokens += len(emitted)
                room -= len(emitted)
                if on_tokens is not None:
                    on_tokens(emitted)
                if self._finished is None and room == 0:
                    self._finished = limit
                if self._finished is not None:
                    return Generation(self._text[len(prompt) :], self._finished, stats)
                emitted = self._round(drafter, room - 1)
        finally:
            try:
                if self._request is not None and drafter is not None:
                    drafter.finish(self._request)
            finally:
                cache.remove_sequence(self._seq_id)

    def _prefill(self) -> list[int]:
        begin = perf_counter()
        logits = self._runner.prefill([self._seq_id], [self._text])
        result = self._decide(logits, TokenTree.chain(self._text[-1:]))
        self._stats.prefill_seconds = seconds = perf_counter() - begin
        length = len(self._text)
        rows = min(length, self._runner.prefill_chunk_size)
        self._budget.cost.observe_prefill(rows, seconds * rows / length)
        return self._cut(result.tokens[0])

    def _start(self, drafter: Drafter, prompt_length: int) -> None:
        begin = perf_counter()
        self._request = Request(
            id=0,
            tokens=self._text,
            prompt_length=prompt_length,
            seq_id=self._seq_id,
            sampling=self._sampling,
            seed=self._seed,
            request_id=self._request_id,
        )
        drafter.start(self._request)
        self._stats.start_seconds = perf_counter() - begin

    def _round(self, drafter: Drafter | None, limit: int) -> list[int]:
        """Draft at most `limit` nodes, forward, decide, keep what was accepted."""
        stats, root = self._stats, self._text[-1]
        begin = perf_counter()
        request, draft = self._request, None
        nodes: Sequence[int]
        if drafter is None or request is None:
            tree, nodes = TokenTree.chain([root]), range(1)
        else:
            request.limit = self._limit(limit)
            drafts = drafter.propose([request], self._budget)
            [draft] = check_drafts(drafter, drafts, [request], self._runner.vocab_size)
            tree, nodes = self._cut_draft(draft, request)
        drafted = perf_counter()
        logits = self._forward(tree)
        forwarded = perf_counter()
        result = self._decide(logits, tree)
        verified = perf_counter()
        emitted = self._cut(result.tokens[0])
        cut = perf_counter()
        path = result.accepted_nodes[0][: len(emitted)]
        kept = result.kept[0][: 1 + len(path)]
        if len(tree) > 1:
            self._runner.cache.commit([self._seq_id], [kept])
        done = perf_counter()
        stats.rounds += 1
        stats.draft_seconds += drafted - begin
        stats.forward_seconds += forwarded - drafted
        stats.verify_seconds += verified - forwarded
        stats.rollback_seconds += done - cut
        if len(tree) > 1:
            offered = len(emitted) > len(path) and ([0, *path][-1] in tree.parents)
            depth = int(tree.depths.max())
            stats.count_draft(depth, len(path) + offered, len(path), len(emitted))
        seconds = verified - drafted + done - cut
        self._budget.observe([0], [len(tree) - 1], [len(emitted)], seconds)
        self._text += emitted
        if drafter is not None and request is not None and draft is not None:
            accepted = [int(nodes[node]) for node in path]
            drafter.observe(
                [
                    RoundResult(
                        request=request,
                        draft=draft,
                        nodes=nodes,
                        accepted=accepted,
                        emitted=emitted,
                        kept=kept,
                        hidden=None,
                        rows=len(tree),
                        seconds=seconds,
                        finished=self._finished is not None,
                    )
                ]
            )
            stats.draft_seconds += perf_counter() - done
        return emitted

    def _cut_draft(self, draft: Draft, request: Request) -> tuple[TokenTree, Sequence[int]]:
        """Return the part of a draft's tree that pays, and which nodes it has."""
        tree, rates = draft.tree, draft.rates
        if rates is None or len(tree) == 1:
            return tree, range(len(tree))
        count = self._budget.choose([request], [rates[1:]])[0]
        if 1 + count == len(tree):
            return tree, range(len(tree))
        part, nodes = tree.prune(rates, 1 + count)
        return part, nodes.tolist()

    def _limit(self, limit: int) -> int:
        """Return how many nodes a drafter may propose."""
        limit = min(limit, self._runner.prefill_chunk_size - 1)
        if self._slides:
            # Pending rows evict no page; a plain step does, and the next round has room again.
            limit = min(limit, self._runner.cache.num_available_tokens - 1)
        return max(limit, 0)

    def _forward(self, tree: TokenTree) -> Any:
        """Return a row of logits per row of the tree; drafts leave its rows pending."""
        if len(tree) == 1:
            return self._runner.decode([self._seq_id], tree.tokens)
        return self._runner.verify([self._seq_id], [tree])

    def _decide(self, logits: Any, tree: TokenTree) -> Verification:
        """Decide which tokens follow the root, none of them behind a stop token."""
        return verify(
            logits,
            [tree],
            rule=self._rule,
            drawn="deterministic",
            sampling=self._sampling,
            seed=self._seed,
            request_ids=[self._request_id],
            root_positions=[len(self._text) - 1],
            history=[self._text[:-1]] if self._penalized else None,
        )

    def _cut(self, emitted: list[int]) -> list[int]:
        """Return the tokens up to the first one that ends the text; remember why it does."""
        for i, token in enumerate(emitted):
            asked = self._stop_when is not None and self._stop_when(token)
            if asked or token in self._stop:
                self._finished = "stop_token" if token in self._stop else "stop_string"
                return emitted[: i + 1]
        return emitted

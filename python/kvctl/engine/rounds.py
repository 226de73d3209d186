"""The rounds of a batch: draft, one forward for all texts, decide, keep what was accepted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .._ffi.errors import OutOfPagesError
from ..draft import Budget, Draft
from ..tree import TokenTree
from .decide import Decider, Decision
from .drafting import Drafting, Outcome, Share
from .grammar.masked_draft import FORCED
from .rows import some_rows, take_rows

if TYPE_CHECKING:
    from .protocol import Runner
    from .text_state import TextState


class Rounds:
    """Prefills texts and runs rounds over them; their sequences are in the runner's cache.

    Parameters
    ----------
    runner
        The model.
    drafting
        Where drafts come from.
    budget
        Told what rounds cost.
    decider
        Verifies drafts.
    """

    def __init__(
        self, runner: Runner, drafting: Drafting, budget: Budget, decider: Decider
    ) -> None:
        self._runner = runner
        self._drafting = drafting
        self._budget = budget
        self._decider = decider

    def prefill(self, texts: Sequence[TextState]) -> bool:
        """Forward prompts, and emit the first token of each text.

        Returns
        -------
        bool
            Whether there was room; without it nothing has changed.
        """
        begin = perf_counter()
        prompts = [list(text.tokens) for text in texts]
        try:
            logits, hidden = self._append(texts, prompts)
        except OutOfPagesError:
            return False
        drafts = [Draft.nothing(prompt[-1]) for prompt in prompts]
        masks = [None if text.grammar is None else text.grammar.mask() for text in texts]
        decisions = self._decider.decide(texts, drafts, logits, masks)
        seconds, total = perf_counter() - begin, sum(map(len, prompts))
        rows = min(total, self._runner.prefill_chunk_size)
        self._budget.cost.observe_prefill(rows, seconds * rows / total)
        for text, decision, prompt in zip(texts, decisions, prompts, strict=True):
            text.stats.prefill_seconds += seconds * len(prompt) / total
            text.take(text.cut(decision.tokens), decision.log_probs)
        for text, states in zip(texts, hidden, strict=True):
            self._drafting.start(text, states)
        for text in texts:
            text.tell(text.tokens[text.request.prompt_length :])
        return True

    def replay(self, text: TextState) -> bool:
        """Forward the tokens of a text again whose sequence had to leave the cache.

        Returns
        -------
        bool
            Whether there was room; without it nothing has changed.
        """
        begin = perf_counter()
        tokens = text.tokens[:-1]
        try:
            _, hidden = self._append([text], [tokens])
        except OutOfPagesError:
            return False
        text.stats.replayed_tokens += len(tokens)
        text.stats.replay_seconds += perf_counter() - begin
        self._drafting.start(text, hidden[0])
        return True

    def run(self, texts: Sequence[TextState], leave: Callable[[TextState], None]) -> None:
        """Run a round.

        Parameters
        ----------
        texts
            All texts of the round.
        leave
            Takes a text out of the cache for which there is no room; the last ones first. It emits
            nothing then.
        """
        begin = perf_counter()
        shares = self._drafting.propose(texts)
        drafted = perf_counter()
        while True:
            try:
                logits, hidden, pending = self._forward(shares)
                break
            except OutOfPagesError:
                if any(len(share.draft.tree) > 1 for share in shares):
                    for share in shares:
                        share.drop()
                elif len(shares) > 1:
                    leave(shares.pop().text)
                else:
                    raise
        forwarded = perf_counter()
        mine = [share.text for share in shares]
        decisions = self._decider.decide(
            mine, [share.draft for share in shares], logits, [share.masks for share in shares]
        )
        verified = perf_counter()
        outcomes = self._outcomes(shares, decisions, logits, hidden)
        cut = perf_counter()
        if pending:
            self._runner.cache.commit([text.seq_id for text in mine], [o.kept for o in outcomes])
        done = perf_counter()
        _count(outcomes, drafted - begin, forwarded - drafted, verified - forwarded, done - cut)
        seconds = verified - drafted + done - cut
        self._budget.observe(
            [text.request.id for text in mine],
            [len(share.draft.tree) - 1 for share in shares],
            [len(outcome.emitted) for outcome in outcomes],
            seconds,
        )
        for outcome, decision in zip(outcomes, decisions, strict=True):
            outcome.share.text.take(outcome.emitted, decision.log_probs)
        rows = sum(share.draft.tree.num_rows for share in shares)
        self._drafting.observe(outcomes, rows, seconds)
        learnt = (perf_counter() - done) / len(mine)
        for outcome in outcomes:
            outcome.share.text.stats.draft_seconds += learnt
            outcome.share.text.tell(outcome.emitted)

    def _append(self, texts: Sequence[TextState], tokens: list[list[int]]) -> tuple[Any, list[Any]]:
        """Forward tokens; logits (texts, V) behind the last ones, and hidden states for each text.

        Raises
        ------
        kvctl.OutOfPagesError
            If there is no room; nothing has changed then.
        """
        runner: Any = self._runner
        ids, layers = [text.seq_id for text in texts], self._drafting.layers
        if not layers:
            return runner.prefill(ids, tokens), [None] * len(texts)
        logits, states = runner.prefill(ids, tokens, hidden=layers)
        ends = list(accumulate(map(len, tokens)))
        pieces = zip([0, *ends], ends, strict=False)
        return logits, [some_rows(states, begin, end) for begin, end in pieces]

    def _forward(self, shares: Sequence[Share]) -> tuple[Any, Any, bool]:
        """Return logits for each row of the trees, hidden states, and whether the rows pend."""
        ids = [share.text.seq_id for share in shares]
        trees = [share.draft.tree for share in shares]
        layers = self._drafting.layers
        if layers:
            runner: Any = self._runner
            logits, hidden = runner.verify(ids, trees, hidden=layers)
            return logits, hidden, True
        if all(len(tree) == 1 for tree in trees):
            roots = [share.text.tokens[-1] for share in shares]
            return self._runner.decode(ids, roots), None, False
        return self._runner.verify(ids, trees), None, True

    def _outcomes(
        self, shares: Sequence[Share], decisions: Sequence[Decision], logits: Any, hidden: Any
    ) -> list[Outcome]:
        """Return what became of each draft, cut where its text ends."""
        outcomes, row = [], 0
        for share, one in zip(shares, decisions, strict=True):
            emitted = share.text.cut(one.tokens)
            path = one.nodes[: len(emitted)]
            kept = one.kept[: 1 + len(path)]
            states = None if hidden is None else take_rows(hidden, [row + k for k in kept])
            after = None
            if self._drafting.wants_logits:
                after = _of_nodes(logits, row, share.draft.tree)
            outcomes.append(Outcome(share, path, emitted, kept, states, after))
            row += share.draft.tree.num_rows
        return outcomes


def _of_nodes(logits: Any, row: int, tree: TokenTree) -> Any:
    """Return the logits after each node of a tree whose first row is `row`."""
    if tree.num_rows == len(tree):  # as most trees have them
        return some_rows(logits, row, row + len(tree))
    return take_rows(logits, (tree.rows + row).tolist())


def _count(
    outcomes: Sequence[Outcome], draft: float, forward: float, verify: float, rollback: float
) -> None:
    """Add a round to the statistics of its texts, each with its share of the times."""
    size = len(outcomes)
    for outcome in outcomes:
        stats, path, tree = outcome.share.text.stats, outcome.path, outcome.share.draft.tree
        stats.rounds += 1
        stats.forced_tokens += sum(outcome.share.nodes[node] == FORCED for node in path)
        stats.draft_seconds += draft / size
        stats.forward_seconds += forward / size
        stats.verify_seconds += verify / size
        stats.rollback_seconds += rollback / size
        if len(tree) > 1:
            offered = len(outcome.emitted) > len(path) and ([0, *path][-1] in tree.parents)
            depth = int(tree.depths.max())
            stats.count_draft(depth, len(path) + offered, len(path), len(outcome.emitted))

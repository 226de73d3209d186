"""A target and a drafter that are tables, and what the loop makes of them many times."""

from __future__ import annotations

import numpy as np
from scipy.stats import chi2

from fake_runner import FakeCache, FakeRunner
from kvctl import Sampling, TokenTree, generate
from kvctl.draft import Draft, Drafter, sample

TARGET = np.array([[0.45, 0.35, 0.2], [0.1, 0.6, 0.3], [0.5, 0.05, 0.45]])
DRAFT = np.array([[0.1, 0.5, 0.4], [0.4, 0.3, 0.3], [0.2, 0.7, 0.1]])
TRIALS = 4000


class TableRunner(FakeRunner):
    """A model whose next token depends on the last one alone."""

    def __init__(self, table):
        super().__init__(pages=10**6, chunk=10**6, sequences=10**6)
        self.cache = FakeCache(pages=10**6, chunk=10**6, sequences=10**6)
        self.vocab_size = len(table)
        self._table = np.log(table).astype(np.float32)

    def _rows(self, contexts):
        return self._table[[context[-1] for context in contexts]]


class TableDrafter(Drafter):
    """Draws siblings from a table.

    Parameters
    ----------
    how
        How they are drawn.
    shape
        Pairs (parent, siblings), in the order in which they are drawn.
    lie
        Sort siblings by their probability after drawing, and not say so.
    """

    def __init__(self, how, shape, *, lie=False):
        self.how, self.shape, self.lie = how, shape, lie
        self.nodes = sum(n for _, n in shape)
        self.logits = np.log(DRAFT).astype(np.float32)

    def propose(self, requests, budget):
        chosen = [r for r in requests if r.limit >= self.nodes]
        drafts = {r.id: Draft.nothing(r.root) for r in requests}
        if chosen:
            drafts |= self.draw(chosen)
        return [drafts[r.id] for r in requests]

    def draw(self, requests):
        tokens, parents = [[r.root] for r in requests], [-1]
        depths = [0]
        for parent, n in self.shape:
            last = [one[parent] for one in tokens]
            drawn = sample(
                self.logits[last],
                how=self.how,
                n=n,
                seed=requests[0].seed,
                request_ids=[r.request_id for r in requests],
                root_positions=[r.root_position for r in requests],
                first_nodes=len(parents),
                depths=depths[parent] + 1,
            )
            for row, one in enumerate(tokens):
                mine = [int(t) for t in drawn.tokens[row]]
                if self.lie:
                    mine.sort(key=lambda t, q=DRAFT[last[row]]: q[t])
                one += mine
            parents += [parent] * n
            depths += [depths[parent] + 1] * n
        needed = self.how not in ("deterministic", "coupled")
        return {
            r.id: Draft(TokenTree(one, parents), self.how, probs=DRAFT[one] if needed else None)
            for r, one in zip(requests, tokens, strict=True)
        }


def joint(rule, drafter, sampling=None, seed=11, trials=TRIALS):
    """Return how often each outcome of tokens 2 to 4 came, and how often it should have."""
    texts = generate(
        TableRunner(TARGET),
        [[0]] * trials,
        max_new_tokens=7,
        rule=rule,
        drafter=drafter,
        sampling=sampling or Sampling(temperature=1.0),
        seed=seed,
        max_batch=2000,
    )
    counts = np.zeros((3, 3, 3))
    for text in texts:
        counts[tuple(text.tokens[1:4])] += 1
    expected = np.einsum("a,ab,bc,cd->bcd", TARGET[0], TARGET, TARGET, TARGET) * trials
    drafted = sum(sum(text.statistics.accepted) for text in texts)
    return counts.ravel(), expected.ravel(), drafted


def statistic(counts, expected):
    return float(((counts - expected) ** 2 / expected).sum())


LIMIT = chi2.isf(1e-7, 26)
CHAIN = [(0, 1), (1, 1), (2, 1)]
TREE = [(0, 2), (1, 2)]
PATHS = [(0, 2), (1, 1), (2, 1)]

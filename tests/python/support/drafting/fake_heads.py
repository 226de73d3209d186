"""Heads without weights over FakeRunner's hidden states, which are sums of the tokens so far."""

from __future__ import annotations

import numpy as np

from fake_runner import FakeCache


def sum_token(total, vocabulary=40):
    """Return a token that depends on the sum of all tokens before it."""
    return int(total * 7 + total // 5) % vocabulary


class SumHead:
    """Knows the sum of all tokens after each entry, and from it, often, the next token.

    A feature is the sum up to its position, so that of an entry's feature and token is the sum
    behind it: the next feature. With `wrong` it errs for one sum in so many.
    """

    hidden_layers = (3,)
    context_window_size = None

    def __init__(self, *, wrong=4, vocabulary=None, size=40, **cache):
        self.cache = FakeCache(**cache)
        self.vocabulary = vocabulary
        self.vocab_size = size if vocabulary is None else len(vocabulary)
        self.prefill_chunk_size = self.cache.prefill_chunk_size
        self.wrong, self.size = wrong, size
        self.entries = {}

    def features(self, hidden):
        assert hidden.shape[1:] == (1, 2) and (hidden[:, 0, 1] == self.hidden_layers[0]).all()
        return hidden[:, 0, :1]

    def forward(self, seq_ids, tokens, features, *, mask=None):
        self.cache.check_room(seq_ids, tokens)
        assert sum(map(len, tokens)) == len(features) <= self.prefill_chunk_size
        row = 0
        for i, (id, new) in enumerate(zip(seq_ids, tokens, strict=True)):
            mine = features[row : row + len(new), 0].tolist()
            row += len(new)
            if mask is not None:
                self.cache.grow(id, new, mask[i].tree_parents.tolist())
                continue
            if not self.cache.committed[id]:
                self.entries[id] = []
            self.cache.append(id, list(new))
            self.entries[id] += zip(mine, new, strict=True)
        return features + np.array([t for new in tokens for t in new], np.float32)[:, None]

    def logits(self, features):
        return np.stack([self.row(int(feature)) for feature in features[:, 0]])

    def row(self, total):
        rng = np.random.default_rng(total)
        row = rng.normal(size=self.size).astype(np.float32)
        row[sum_token(total, self.size)] += 4.0 if total % self.wrong else -4.0
        return row if self.vocabulary is None else row[self.vocabulary.token_ids]


class TableHead(SumHead):
    """Its guess depends on the entry's token alone, as `table_world.DRAFT` says."""

    hidden_layers = (0,)

    def __init__(self, table, vocabulary=None):
        super().__init__(size=len(table), vocabulary=vocabulary, pages=10**6, chunk=10**6)
        self.cache._sequences = 10**6
        self.table = np.log(table).astype(np.float32)

    def forward(self, seq_ids, tokens, features, *, mask=None):
        super().forward(seq_ids, tokens, features, mask=mask)
        return np.array([t for new in tokens for t in new], np.float32)[:, None]

    def row(self, token):
        row = self.table[token]
        return row if self.vocabulary is None else row[self.vocabulary.token_ids]


class SumMedusa:
    """Heads that know the sum of the text but its last token, and guess from it what follows."""

    hidden_layers = (3,)

    def __init__(self, *, depth=3, size=40, spread=3.0):
        self.depth, self.size, self.spread = depth, size, spread
        self.asked = []

    def logits(self, hidden):
        rows = []
        for total in hidden[:, 0, 0]:
            self.asked.append(int(total))
            total = int(total) + sum_token(int(total), self.size)
            for _ in range(self.depth):
                row = np.zeros(self.size, np.float32)
                row[sum_token(total, self.size)] = self.spread
                rows.append(row)
                total += sum_token(total, self.size)
        return np.stack(rows).reshape(len(hidden), self.depth, self.size)


class TableMedusa:
    """Guesses a fixed distribution at each depth."""

    hidden_layers = (0,)

    def logits(self, hidden):
        rows = np.log(np.array([[0.1, 0.5, 0.4], [0.4, 0.3, 0.3], [0.2, 0.7, 0.1]], np.float32))
        return np.broadcast_to(rows, (len(hidden), 3, 3)).copy()


class ToldHead:
    """Knows the answers to some prompts, for models of any kind; errs at every fifth place.

    A feature is the number of a context that it has seen; what the target's hidden states are is
    not looked at.
    """

    hidden_layers = (1,)
    context_window_size = None
    vocabulary = None
    prefill_chunk_size = 4096

    def __init__(self, prompts, texts):
        self.cache = FakeCache(pages=10**6, chunk=4096, sequences=10**6)
        self.following = {}
        for prompt, text in zip(prompts, texts, strict=True):
            tokens = [*prompt, *text]
            for i in range(len(prompt), len(tokens)):
                self.following[tuple(tokens[1:i])] = tokens[i]
        self.vocab_size = 1 + max(max(text) for text in texts)
        self.contexts = []

    def features(self, hidden):
        assert hidden.ndim == 3 and hidden.shape[1] == 1
        return np.zeros((len(hidden), 1), np.float32)

    def forward(self, seq_ids, tokens, features, *, mask=None):
        assert len(features) == sum(map(len, tokens))
        first = len(self.contexts)
        for i, (id, new) in enumerate(zip(seq_ids, tokens, strict=True)):
            past = self.cache.committed[id]
            if mask is None:
                self.contexts += [(*past, *new[: j + 1]) for j in range(len(new))]
                self.cache.append(id, list(new))
                continue
            node = self.cache.grow(id, new, mask[i].tree_parents.tolist())
            paths = (self.cache.path(id, node + j) for j in range(len(new)))
            self.contexts += [(*past, *path) for path in paths]
        return np.arange(first, len(self.contexts), dtype=np.float32)[:, None]

    def logits(self, features):
        rows = np.zeros((len(features), self.vocab_size), np.float32)
        for row, [number] in zip(rows, features.astype(int), strict=True):
            context = self.contexts[number]
            right = self.following.get(context, 0)
            row[right if len(context) % 5 else (right + 1) % self.vocab_size] = 9.0
        return rows


class ToldMedusa:
    """Guesses at every place what is frequent in some texts."""

    hidden_layers = (1,)

    def __init__(self, texts):
        counts = np.bincount(np.concatenate(texts))
        self.rows = np.log(np.broadcast_to(counts + 1e-3, (2, len(counts)))).astype(np.float32)

    def logits(self, hidden):
        assert hidden.ndim == 3 and hidden.shape[1] == 1
        return np.broadcast_to(self.rows, (len(hidden), *self.rows.shape)).copy()

"""A model without weights over a cache without pages, for tests of what is above them."""

import hashlib

import numpy as np

from kvctl import OutOfPagesError

VOCABULARY = 40


def hashed_logits(context, order):
    """Logits that depend on the last `order` tokens alone, and on nothing else."""
    key = ",".join(map(str, context[-order:])).encode()
    seed = int.from_bytes(hashlib.sha256(key).digest()[:4], "little")
    return np.random.default_rng(seed).normal(size=VOCABULARY).astype(np.float32) * 3


def hidden_states(contexts, layers):
    """Hidden states that tell the tokens seen apart: their sum and the layer; (rows, layers, 2)."""
    return np.array([[[sum(c), layer] for layer in layers] for c in contexts], np.float32)


class FakeCache:
    """Token lists instead of keys and values; refuses what the real one refuses."""

    def __init__(self, pages=64, page_size=16, chunk=64, sequences=100):
        self.page_size = page_size
        self.prefill_chunk_size = chunk
        self._sequences = sequences
        self.committed = {}
        self.pending = {}
        self._held = {}
        self.num_available_pages = pages

    def _recount(self, seq_id):
        """Note how many pages the sequence holds now; a sum over thousands takes long."""
        held = -(-self.sequence_length(seq_id) // self.page_size)
        self.num_available_pages += self._held[seq_id] - held
        self._held[seq_id] = held

    @property
    def num_available_tokens(self):
        return self.num_available_pages * self.page_size

    def add_sequence(self, seq_id):
        if seq_id in self.committed:
            raise ValueError(f"sequence {seq_id} exists already")
        if len(self.committed) == self._sequences:
            raise ValueError(f"sequence {seq_id} would be one more than {self._sequences}")
        self.committed[seq_id], self.pending[seq_id] = [], []
        self._held[seq_id] = 0

    def __contains__(self, seq_id):
        return seq_id in self.committed

    def remove_sequence(self, seq_id):
        del self.committed[seq_id], self.pending[seq_id]
        self.num_available_pages += self._held.pop(seq_id)

    def sequence_length(self, seq_id):
        return len(self.committed[seq_id]) + len(self.pending[seq_id])

    def pending_length(self, seq_id):
        return len(self.pending[seq_id])

    def append(self, seq_id, tokens, parents=None):
        assert not self.pending[seq_id], "pending nodes were neither committed nor aborted"
        if parents is None:
            self.committed[seq_id] += tokens
        else:
            self.pending[seq_id] = list(zip(tokens, parents, strict=True))
        self._recount(seq_id)

    def grow(self, seq_id, tokens, parents):
        """Append to the pending nodes, and return the first new one."""
        first = len(self.pending[seq_id])
        assert all(parent < first + i for i, parent in enumerate(parents))
        self.pending[seq_id] += zip(map(int, tokens), parents, strict=True)
        self._recount(seq_id)
        return first

    def check_room(self, seq_ids, tokens):
        """Refuse a forward as a whole."""
        pages = 0
        for seq_id, new in zip(seq_ids, tokens, strict=True):
            length = self.sequence_length(seq_id)
            pages += -(-(length + len(new)) // self.page_size) - -(-length // self.page_size)
        if pages > self.num_available_pages:
            raise OutOfPagesError(f"{pages} pages are needed, {self.num_available_pages} are free")

    def path(self, seq_id, node):
        path = []
        while node >= 0:
            token, node = self.pending[seq_id][node]
            path.append(token)
        return path[::-1]

    def commit(self, seq_ids, kept):
        for seq_id, nodes in zip(seq_ids, kept, strict=True):
            nodes = [int(node) for node in nodes]
            path = self.path(seq_id, nodes[-1]) if nodes else []
            assert [self.pending[seq_id][node][0] for node in nodes] == path
            self.committed[seq_id] += path
            self.pending[seq_id] = []
            self._recount(seq_id)

    def abort(self, seq_ids):
        for seq_id in seq_ids:
            self.pending[seq_id] = []
            self._recount(seq_id)

    def popn(self, seq_id, n):
        del self.committed[seq_id][len(self.committed[seq_id]) - n :]
        self._recount(seq_id)


class FakeRunner:
    """Speaks as ModelRunner does; keeps the widths of its forwards in `forwards`."""

    def __init__(self, order=2, tokens_after=None, **cache):
        self.cache = FakeCache(**cache)
        self.vocab_size = VOCABULARY
        self.context_window_size = 4096
        self.sliding_window_size = None
        self.abilities = frozenset(("hidden",))
        self.forwards = []
        self.prefill_chunk_size = self.cache.prefill_chunk_size
        self._order = order
        self._tokens_after = tokens_after
        self.broken = False

    def _logits(self, context):
        if self._tokens_after is None:
            return hashed_logits(context, self._order)
        logits = np.zeros(VOCABULARY, np.float32)
        logits[self._tokens_after(context)] = 10.0
        return logits

    def _rows(self, contexts):
        if self.broken:
            raise RuntimeError("the forward broke")
        return np.stack([self._logits(context) for context in contexts])

    def prefill(self, seq_ids, tokens, hidden=None):
        contexts, all_contexts = [], []
        self.cache.check_room(seq_ids, tokens)
        for seq_id, new in zip(seq_ids, tokens, strict=True):
            self.forwards.append(len(new))
            self.cache.append(seq_id, [int(token) for token in new])
            past = self.cache.committed[seq_id]
            contexts.append(past)
            all_contexts += [past[: len(past) - len(new) + i + 1] for i in range(len(new))]
        logits = self._rows(contexts)
        return logits if hidden is None else (logits, hidden_states(all_contexts, hidden))

    def decode(self, seq_ids, tokens):
        return self.prefill(seq_ids, [[token] for token in tokens])

    def verify(self, seq_ids, trees, hidden=None):
        contexts = []
        self.cache.check_room(seq_ids, trees)
        for seq_id, tree in zip(seq_ids, trees, strict=True):
            assert tree.num_rows == len(tree) <= self.cache.prefill_chunk_size
            self.forwards.append(len(tree))
            self.cache.append(seq_id, tree.tokens.tolist(), tree.parents.tolist())
            past = self.cache.committed[seq_id]
            contexts += [past + self.cache.path(seq_id, node) for node in range(len(tree))]
        logits = self._rows(contexts)
        return logits if hidden is None else (logits, hidden_states(contexts, hidden))

    def forward(self, seq_ids, tokens, hidden=None, mask=None):
        contexts = []
        self.cache.check_room(seq_ids, tokens)
        if mask is not None:
            for seq_id, new, one in zip(seq_ids, tokens, mask, strict=True):
                first = self.cache.grow(seq_id, new, one.tree_parents.tolist())
                past = self.cache.committed[seq_id]
                contexts += [past + self.cache.path(seq_id, first + i) for i in range(len(new))]
            return self._rows(contexts)
        for seq_id, new in zip(seq_ids, tokens, strict=True):
            self.forwards.append(len(new))
            self.cache.append(seq_id, [int(token) for token in new])
            past = self.cache.committed[seq_id]
            contexts += [past[: len(past) - len(new) + i + 1] for i in range(len(new))]
        logits = self._rows(contexts)
        return logits if hidden is None else (logits, hidden_states(contexts, hidden))

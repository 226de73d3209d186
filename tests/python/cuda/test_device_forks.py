"""Random operations on forks, whose shared pages are read once, beside an oracle in float64.

CUDA cases need a GPU (``pytest -m cuda``); test_cuda_emulated.py runs them with the kernels on the
CPU.
"""

from __future__ import annotations

import numpy as np
import pytest

from devices import DEVICES, fetch, poison, put, require
from kvctl import Mask, PagedKVCache

HEADS, KV_HEADS, DIM, PREFIX, MOST = 4, 2, 64, 210, 8
WIDTH = HEADS + 2 * KV_HEADS


@pytest.fixture(autouse=True)
def _device(device):
    require(device)


class Forks:
    """A cache and, for each sequence, the K and V of its tokens."""

    def __init__(self, device, seed):
        self.device = device
        self.rng = np.random.default_rng(seed)
        self.cache = PagedKVCache.create(
            num_layers=1,
            num_qo_heads=HEADS,
            num_kv_heads=KV_HEADS,
            head_dim=DIM,
            max_total_tokens=4096,
            page_size=8,
            max_sequences=MOST,
            prefill_chunk_size=256,
            dtype="float16",
            device=device,
        )
        self.cache.add_sequence(0)
        self.tokens = {0: np.zeros((0, WIDTH, DIM))}
        self.next_id = 1
        self.forward({0: PREFIX})
        for _ in range(4):
            self.fork(0, PREFIX - int(self.rng.integers(12)))

    def fork(self, parent, length):
        self.cache.fork_sequence(parent, self.next_id, length)
        self.tokens[self.next_id] = self.tokens[parent][:length]
        self.next_id += 1

    def forward(self, lengths, trees=None):
        """A step; compares each new token with attention to those that it sees."""
        rows = sum(lengths.values())
        qkv = self.rng.standard_normal((rows, WIDTH, DIM)).astype(np.float16)
        out = poison((rows, HEADS, DIM), self.device, "float16")
        mask = None if trees is None else [Mask.tree(parents) for parents in trees]
        with self.cache.forward(list(lengths), list(lengths.values()), mask=mask):
            self.cache.attention(0, put(qkv, self.device), out)
        self.cache.debug_poison()
        got, row = fetch(out), 0
        for index, (seq_id, n) in enumerate(lengths.items()):
            new = qkv[row : row + n].astype(float)
            for i in range(n):
                path = list(range(i + 1)) if trees is None else [i]
                while trees is not None and trees[index][path[0]] >= 0:
                    path.insert(0, trees[index][path[0]])
                want = self.attend(new[i, :HEADS], np.concatenate([self.tokens[seq_id], new[path]]))
                error = np.linalg.norm(got[row + i] - want)
                assert error < 3e-3 * np.linalg.norm(want), (seq_id, i)
            if trees is None:
                self.tokens[seq_id] = np.concatenate([self.tokens[seq_id], new])
            else:
                self.commit(seq_id, trees[index], new)
            row += n

    def commit(self, seq_id, parents, new):
        kept = [int(self.rng.integers(len(parents)))]
        while parents[kept[0]] >= 0:
            kept.insert(0, parents[kept[0]])
        self.cache.commit([seq_id], [kept])
        self.tokens[seq_id] = np.concatenate([self.tokens[seq_id], new[kept]])

    @staticmethod
    def attend(q, tokens):
        group = HEADS // KV_HEADS
        out = []
        for head in range(HEADS):
            k = tokens[:, HEADS + head // group]
            weights = np.exp(k @ q[head] * DIM**-0.5)
            out.append(weights / weights.sum() @ tokens[:, HEADS + KV_HEADS + head // group])
        return np.array(out)

    def act(self):
        """One operation, chosen at random."""
        ids = list(self.tokens)
        seq_id = int(self.rng.choice(ids))
        kind = self.rng.integers(8)
        if kind == 0 and len(ids) < MOST:
            self.fork(seq_id, int(self.rng.integers(100, len(self.tokens[seq_id]) + 1)))
        elif kind == 1 and len(ids) > 4:
            self.cache.remove_sequence(seq_id)
            del self.tokens[seq_id]
        elif kind == 2:
            n = int(self.rng.integers(1, 40))
            self.cache.popn(seq_id, n)
            self.tokens[seq_id] = self.tokens[seq_id][:-n]
        else:
            chosen = [one for one in ids if self.rng.random() < 0.9] or ids
            lengths = {one: int(self.rng.integers(1, 5)) for one in chosen}
            trees = None
            if kind > 5:
                trees = [
                    [int(self.rng.integers(-1, i)) for i in range(n)] for n in lengths.values()
                ]
            self.forward(lengths, trees)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("device", DEVICES)
def test_random_operations_on_forks(device, seed):
    forks = Forks(device, seed)
    for _ in range(14):
        forks.act()
    forks.forward(dict.fromkeys(forks.tokens, 1))


@pytest.mark.parametrize("device", DEVICES)
def test_the_oracle_notices_another_sequences_keys(device):
    """The negative control: a child that is taken for another has other tokens."""
    forks = Forks(device, 0)
    forks.forward(dict.fromkeys(forks.tokens, 3))
    forks.tokens[1], forks.tokens[2] = forks.tokens[2], forks.tokens[1]
    with pytest.raises(AssertionError):
        forks.forward(dict.fromkeys(forks.tokens, 1))

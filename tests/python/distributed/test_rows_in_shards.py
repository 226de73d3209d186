"""Verifying rows whose columns lie on several workers: what the whole rows give, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
import tvm_ffi

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

import kvctl
from kvctl._ffi import functions as ffi
from shards import shards
from tiny_model import compile_tiny_model

VOCAB = 16000  # two blocks of 4096 on each of two workers; the last one is not full
COLUMNS = 8192


class Rows:
    """Logits as the workers of `group` hold them."""

    def __init__(self, group, whole):
        padded = np.full((len(whole), 2 * COLUMNS), -np.inf, np.float32)
        padded[:, :VOCAB] = whole
        self.group, self.shape, self.gathered = group, whole.shape, 0
        self.parts = [np.ascontiguousarray(part) for part in np.split(padded, 2, axis=1)]

    def gather(self):
        self.gathered += 1
        return self.group.on_all(
            lambda rank: ffi.runner.gather_logits(
                self.group.runners[rank]._handle, tvm_ffi.from_dlpack(self.parts[rank])
            )
        )[0]

    def tokens(self, temperatures, seed, request_ids, positions):
        found = self.group.on_all(
            lambda rank: ffi.runner.sample_shards(
                self.group.runners[rank]._handle,
                tvm_ffi.from_dlpack(self.parts[rank]),
                temperatures,
                seed,
                tvm_ffi.Shape(request_ids.tolist()),
                tvm_ffi.Shape(positions.tolist()),
            ).numpy()
        )
        np.testing.assert_array_equal(found[0], found[1])
        return found[0]


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """Two workers of a model with this vocabulary."""
    changes = {"vocab_size": VOCAB, "num_hidden_layers": 1}
    directory = compile_tiny_model(
        tmp_path_factory.mktemp("m") / "tp", changes=changes, tensor_parallel=2
    )
    with shards(2) as group:
        yield group.load(directory)


def random_logits(rng, rows):
    """Rows of several sharpness, some with a few large logits only, ties among them."""
    logits = rng.normal(size=(rows, VOCAB)).astype(np.float32) * np.float32(
        rng.choice([0.1, 3, 30])
    )
    for row in range(rows):
        if rng.random() < 0.3:
            logits[row, rng.integers(0, VOCAB, 3)] = 40
        if rng.random() < 0.2:
            half = slice(0, COLUMNS) if rng.random() < 0.5 else slice(COLUMNS, VOCAB)
            logits[row, half] = -np.inf
    return logits


def random_tree(rng, logits, temperature):
    """A tree whose tokens are often those that its rows give."""
    size = len(logits)
    parents = [-1, *(int(rng.integers(0, node)) for node in range(1, size))]
    likely = logits.argmax(1) if temperature == 0 else None
    tokens = [int(rng.integers(0, VOCAB))]
    for node in range(1, size):
        choose = likely is not None and rng.random() < 0.7
        tokens.append(int(likely[parents[node]]) if choose else int(rng.integers(0, VOCAB)))
    return kvctl.TokenTree(tokens, parents)


@pytest.mark.parametrize("seed", range(20))
def test_as_the_whole_rows(group, seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 7, rng.integers(1, 4)).tolist()
    logits = random_logits(rng, sum(sizes))
    samplings, trees, begin = [], [], 0
    ids, roots = rng.integers(0, 1 << 40, len(sizes)).tolist(), rng.integers(0, 999, len(sizes))
    for b, size in enumerate(sizes):
        temperature = float(rng.choice([0.0, 0.3, 1.0, 1.7]))
        part = logits[begin : begin + size]
        tree = random_tree(rng, part, temperature)
        if temperature > 0 and size > 1:  # the token that is sampled is often drafted
            sampled = kvctl.sample(
                part[:1],
                sampling=kvctl.Sampling(temperature=temperature),
                seed=seed,
                request_ids=[ids[b]],
                positions=[int(roots[b]) + 1],
            )
            tokens = [tree.tokens[0], sampled[0], *tree.tokens[2:]]
            tree = kvctl.TokenTree(tokens, tree.parents)
        stops = tree.tokens[1:2].tolist() if rng.random() < 0.3 else []
        samplings.append(kvctl.Sampling(temperature=temperature, stop_tokens=stops))
        trees.append(tree)
        begin += size
    names = {"seed": seed, "request_ids": ids, "root_positions": roots.tolist()}
    rows = Rows(group, logits)
    options = {"rule": "target_only", "drawn": "deterministic", "sampling": samplings, **names}
    found, wanted = (kvctl.verify(one, trees, **options) for one in (rows, logits))
    assert rows.gathered == 0
    for name in ("kept", "tokens", "accepted_nodes"):
        assert [list(a) for a in getattr(found, name)] == [list(a) for a in getattr(wanted, name)]
    for name in ("bonus", "finished", "num_accepted", "num_emitted", "rows"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    assert found.lossless
    assert wanted.lossless


@pytest.mark.parametrize(
    "options",
    [
        {"rule": "typical"},
        {"rule": "target_only", "sampling": kvctl.Sampling(top_p=0.9)},
        {"rule": "target_only", "sampling": kvctl.Sampling(presence_penalty=0.5)},
        {"rule": "target_only", "log_probs": True},
        {"rule": "greedy", "bitmask": np.full((3, 500), -1, np.int32)},
    ],
)
def test_other_rules_gather_the_rows(group, options):
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(3, VOCAB)).astype(np.float32)
    rows, tree = Rows(group, logits), kvctl.TokenTree([1, 2, 3], [-1, 0, 0])
    options = {"drawn": "deterministic", "root_positions": [7], "history": [[5]], **options}
    found, wanted = (kvctl.verify(one, [tree], **options) for one in (rows, logits))
    assert rows.gathered == 1
    assert found.tokens == wanted.tokens


def test_rows_that_the_sums_do_not_tell(group):
    logits = np.zeros((1, VOCAB), np.float32)
    logits[0, [5, 9000]] = np.inf
    rows = Rows(group, logits)
    names = {"request_ids": [3], "positions": [8], "seed": 4}
    np.testing.assert_array_equal(kvctl.sample(rows, **names), kvctl.sample(logits, **names))
    assert rows.gathered == 1
    logits[:] = -np.inf
    with pytest.raises(ValueError, match="no token is left"):
        kvctl.sample(Rows(group, logits), **names)


def test_samples_of_one_row_each(group):
    rng = np.random.default_rng(1)
    logits = random_logits(rng, 6)
    samplings = [kvctl.Sampling(temperature=one) for one in (0, 1, 0.5, 2, 0, 1)]
    names = {"request_ids": list(range(6)), "positions": list(range(10, 16)), "seed": 9}
    rows = Rows(group, logits)
    found, wanted = (kvctl.sample(one, sampling=samplings, **names) for one in (rows, logits))
    np.testing.assert_array_equal(found, wanted)
    assert rows.gathered == 0


def test_names_of_random_numbers_are_asked_for(group):
    rows, tree = Rows(group, np.zeros((1, VOCAB), np.float32)), kvctl.TokenTree([1], [-1])
    with pytest.raises(ValueError, match="root_positions must be given"):
        kvctl.verify(rows, [tree], rule="target_only", drawn="deterministic")
    with pytest.raises(ValueError, match="drawn must be one of"):
        kvctl.verify(rows, [tree], rule="greedy", drawn="some")

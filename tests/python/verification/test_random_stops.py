"""Random trees with stops: whatever lies behind a stop, the result is the same, bit for bit.

Behind a stop lie its own row (logits, mask, the distribution of its children) and all that is below
it, tokens included.
"""

import numpy as np
import pytest

import kvctl

VOCAB = 40
STOPS = (3, 11)
WORDS = 2
CASES = 80

# Rule, how its nodes are drawn, and the shape of its trees.
RULES = [
    ("greedy", "deterministic", "tree"),
    ("target_only", "deterministic", "tree"),
    ("target_only", "independent", "tree"),
    ("coupled", "coupled", "tree"),
    ("token_wise", "independent", "chain"),
    ("token_wise", "deterministic", "chain"),
    ("block", "independent", "chain"),
    ("recursive", "independent", "tree"),
    ("recursive", "without_replacement", "tree"),
    ("traversal", "independent", "tree"),
    ("traversal", "without_replacement", "tree"),
    ("traversal", "deterministic", "tree"),
    ("best_of_k", "independent", "paths"),
    ("typical", "deterministic", "tree"),
]


def parents_of(rng, shape):
    if shape == "chain":
        return list(range(-1, rng.integers(1, 8)))
    if shape == "paths":
        paths, length = rng.integers(1, 4, 2)
        return [-1, *([0] * paths), *range(1, 1 + paths * (length - 1))]
    return [-1, *(int(rng.integers(i)) for i in range(1, rng.integers(2, 12)))]


class Model:
    """Rows that depend on the path to a node alone, as a model's do."""

    def __init__(self, seed):
        self.seed = seed

    def rng(self, path, what):
        return np.random.default_rng([self.seed, what, *path])

    def logits(self, path):
        logits = self.rng(path, 0).standard_normal(VOCAB).astype(np.float32) * 2
        logits[list(STOPS)] += 2.5  # so that stops are accepted often
        return logits

    def draft(self, path):
        logits = self.logits(path) + self.rng(path, 1).standard_normal(VOCAB)
        probs = np.exp(logits - logits.max())
        return probs / probs.sum()

    def mask(self, path):
        allowed = self.rng(path, 2).random(WORDS * 32) < 0.8
        allowed[VOCAB:] = False
        return np.packbits(allowed, bitorder="little").view(np.int32)


def draw(rng, model, parents, how):
    """Draw a tree's tokens; a node without replacement is left out where none is left."""
    tokens, paths = [int(rng.integers(VOCAB))], [()]
    for node, parent in enumerate(parents[1:], 1):
        probs = model.draft(paths[parent])
        if how == "without_replacement":
            probs[[tokens[n] for n in range(1, node) if parents[n] == parent]] = 0
        tokens.append(int(rng.choice(VOCAB, p=probs / probs.sum())))
        paths.append((*paths[parent], tokens[-1]))
    return tokens, paths


@pytest.mark.parametrize("rule, how, shape", RULES)
def test_nothing_behind_a_stop_is_read(rule, how, shape):
    reached = 0
    for seed in range(CASES):
        rng = np.random.default_rng([seed, 5])
        model, batch = Model(seed), int(rng.integers(1, 4))
        sampling = kvctl.Sampling(
            temperature=0.0 if rule == "greedy" else float(rng.choice([0.7, 1.0])),
            top_k=int(rng.choice([0, 12])),
            top_p=float(rng.choice([1.0, 0.9])),
            repetition_penalty=float(rng.choice([1.0, 1.2])),
            presence_penalty=float(rng.choice([0.0, 0.4])),
            stop_tokens=STOPS,
        )
        drafts = []
        for _ in range(batch):
            parents = parents_of(rng, shape)
            drafts.append((parents, *draw(rng, model, parents, how)))
        paths = [path for _, _, one in drafts for path in one]
        arrays = {
            "logits": np.stack([model.logits(path) for path in paths]),
            "bitmask": np.stack([model.mask(path) for path in paths]),
            "draft_probs": np.stack([model.draft(path) for path in paths]).astype(np.float32),
        }
        behind = np.array([any(token in STOPS for token in path) for path in paths])
        below = np.array([any(token in STOPS for token in path[:-1]) for path in paths])
        options = dict(
            rule=rule,
            drawn=how,
            sampling=sampling,
            seed=seed,
            request_ids=list(range(batch)),
            root_positions=[10 + b for b in range(batch)],
            history=[[1, 2, 3]] * batch,
            log_probs=True,
        )
        if rng.random() < 0.5:
            del arrays["bitmask"]
        if how in ("deterministic", "coupled"):
            del arrays["draft_probs"]

        trees = [kvctl.TokenTree(tokens, parents) for parents, tokens, _ in drafts]
        want = kvctl.verify(trees=trees, **arrays, **options)
        reached += sum(STOPS[0] in t or STOPS[1] in t for t in want.tokens)
        bad = {
            "logits": rng.choice([np.nan, np.inf, -np.inf, 0, 80], (behind.sum(), VOCAB)),
            "bitmask": rng.integers(0, 2, (behind.sum(), WORDS)) * 12345,
            "draft_probs": rng.choice([np.nan, -1.0, 0.0, 7.0], (behind.sum(), VOCAB)),
        }
        for name, array in arrays.items():
            array[behind] = bad[name] if rng.random() < 0.7 else 0
            if name == "bitmask":
                array[behind, 1:] &= 2 ** (VOCAB - 32) - 1
        other, at = [], 0
        for parents, tokens, _ in drafts:
            where = below[at : at + len(tokens)]
            new = np.where(where, rng.integers(0, VOCAB, len(tokens)), tokens)
            other.append(kvctl.TokenTree(new, parents))
            at += len(tokens)
        got = kvctl.verify(trees=other, **arrays, **options)
        assert got.tokens == want.tokens and got.kept == want.kept, seed
        assert got.accepted_nodes == want.accepted_nodes
        assert got.bonus.tolist() == want.bonus.tolist()
        assert got.finished.tolist() == want.finished.tolist()
        for a, b in zip(got.log_probs, want.log_probs, strict=True):
            np.testing.assert_array_equal(a, b)
    assert reached > CASES // 4  # the test is about these

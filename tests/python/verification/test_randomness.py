"""What a result depends on: seed, request and position; and on nothing else."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import kvctl
from kvctl.draft import sample as draft_sample
from kvctl.verification.flatten import signed

VOCAB = 5000
SIZE = 7
DEPTH = 4


def make_batch(seed=0):
    """Chains and trees with their draft distributions; no two requests alike."""
    rng = np.random.default_rng(seed)
    trees, logits, distributions = [], [], []
    for b in range(SIZE):
        parents = [-1, 0, 1, 2] if b % 2 else [-1, 0, 0, 1]
        base = rng.normal(size=(DEPTH, VOCAB)).astype(np.float32) * 3
        draft = base + rng.normal(size=base.shape).astype(np.float32)
        draw = draft_sample(
            draft,
            how="independent",
            n=2,
            seed=3,
            request_ids=[b] * DEPTH,
            root_positions=[10 * b] * DEPTH,
            first_nodes=[1, 3, 5, 7],
        )
        tokens = [
            1,
            *(int(draw.tokens[p, 0 if b % 2 else i % 2]) for i, p in enumerate(parents[1:])),
        ]
        trees.append(kvctl.TokenTree(tokens, parents))
        logits.append(base)
        distributions.append(draw.probs)
    return trees, logits, distributions


def call(trees, logits, distributions, order, rule="traversal", **more):
    return kvctl.verify(
        np.concatenate([logits[i] for i in order]),
        [trees[i] for i in order],
        rule=rule,
        drawn="independent",
        draft_probs=np.concatenate([distributions[i] for i in order]),
        request_ids=[100 + i for i in order],
        root_positions=[10 * i for i in order],
        log_probs=True,
        **more,
    )


RULES = ["target_only", "recursive", "traversal", "coupled"]


@pytest.mark.parametrize("rule", RULES)
def test_order_and_company_do_not_matter(rule):
    batch = make_batch()
    together = call(*batch, range(SIZE), rule)
    permuted = [4, 2, 6, 0, 1, 5, 3]
    shuffled = call(*batch, permuted, rule)
    for place, i in enumerate(permuted):
        alone = call(*batch, [i], rule)
        assert alone.tokens[0] == shuffled.tokens[place] == together.tokens[i]
        np.testing.assert_array_equal(alone.log_probs[0], together.log_probs[i])


def test_spare_rows_do_not_matter():
    trees, logits, distributions = make_batch()
    padded = [np.concatenate([x, np.full((3, VOCAB), np.nan, np.float32)]) for x in logits]
    padded_distributions = [
        np.concatenate([x, np.full((3, VOCAB), np.nan, np.float32)]) for x in distributions
    ]
    spare = [kvctl.TokenTree([*t.tokens, 9], [*t.parents, 0], rows=[0, 1, 2, 3, 6]) for t in trees]
    rows = call(trees, logits, distributions, range(SIZE), "target_only")
    more = call(spare, padded, padded_distributions, range(SIZE), "target_only")
    assert rows.tokens == more.tokens


WORKER = """
import json, sys
sys.path.insert(0, {folder!r})
import test_randomness as t
batch = t.make_batch()
results = [t.call(*batch, range(t.SIZE), rule) for rule in t.RULES]
logits = batch[1][0]
print(json.dumps([[r.tokens, [x.tolist() for x in r.log_probs]] for r in results]))
"""


@pytest.mark.parametrize(
    "environment",
    [{"OMP_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "7"}, {"KVCTL_ISA": "baseline"}],
    ids=lambda e: "-".join(e.values()),
)
def test_threads_and_instruction_sets_do_not_matter(environment):
    batch = make_batch()
    results = [call(*batch, range(SIZE), rule) for rule in RULES]
    expected = [[r.tokens, [x.tolist() for x in r.log_probs]] for r in results]
    from pathlib import Path

    code = WORKER.format(folder=str(Path(__file__).parent))
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(run.stdout) == expected


@pytest.mark.parametrize("name", [2**64, -(2**63) - 1, 2**70])
def test_names_beyond_64_bits_are_refused(name):
    """Their low bits would be the name of another request: of UUIDs that differ above, say."""
    logits = np.zeros((1, 12), np.float32)
    named = dict(seed=1, request_ids=[2], positions=[3])
    for change in (dict(seed=name), dict(request_ids=[name])):
        with pytest.raises(ValueError, match=f"must fit 64 bits, got {name}"):
            kvctl.sample(logits, **{**named, **change})
        draw = {**named, **change}
        draw["root_positions"] = draw.pop("positions")
        with pytest.raises(ValueError, match=f"must fit 64 bits, got {name}"):
            kvctl.draft.sample(logits, how="independent", **draw)
        chain = kvctl.TokenTree.chain([1])
        with pytest.raises(ValueError, match=f"must fit 64 bits, got {name}"):
            kvctl.verify(logits, chain, rule="target_only", drawn="deterministic", **draw)


def test_seed_request_and_position_all_matter():
    logits = np.zeros((64, VOCAB), np.float32)
    base = dict(seed=1, request_ids=range(64), positions=[5] * 64)
    tokens = kvctl.sample(logits, **base)
    assert (tokens == kvctl.sample(logits, **base)).all()
    for change in (
        dict(seed=2),
        dict(request_ids=range(64, 128)),
        dict(positions=[6] * 64),
        dict(noise="gumbel"),
    ):
        assert (tokens == kvctl.sample(logits, **{**base, **change})).mean() < 0.1
    large = dict(seed=2**63 + 5, request_ids=[2**64 - 1 - i for i in range(64)])
    assert (tokens == kvctl.sample(logits, **{**base, **large})).mean() < 0.1
    assert signed(2**64 - 1) == -1 and signed(-1) == -1 and signed(5) == 5


class Model:
    """A target whose logits depend on the last two tokens: bit-equal however they are asked for."""

    def __init__(self, vocab=12, seed=0):
        self.table = (
            np.random.default_rng(seed).normal(size=(vocab, vocab, vocab)).astype(np.float32)
        )

    def __call__(self, *context):
        return self.table[context[-2], context[-1]]


def decode_plainly(model, prompt, length, seed, noise, sampling):
    text = list(prompt)
    while len(text) < len(prompt) + length:
        row = model(*text)[None]
        token = kvctl.sample(
            row,
            seed=seed,
            positions=[len(text)],
            noise=noise,
            sampling=sampling,
            request_ids=[5],
            history=[text],
        )
        text.append(int(token[0]))
    return text[len(prompt) :]


def decode_speculatively(model, prompt, length, seed, rule, drawn, sampling, drafter):
    text = list(prompt)
    while len(text) < len(prompt) + length:
        tree = drafter(text)
        logits = np.stack([model(*text, *path(tree, i)) for i in range(len(tree))])
        result = kvctl.verify(
            logits,
            tree,
            rule=rule,
            drawn=drawn,
            seed=seed,
            request_ids=[5],
            root_positions=[len(text) - 1],
            sampling=sampling,
            history=[text[:-1]],
        )
        text += result.tokens[0]
    return text[len(prompt) : len(prompt) + length]


def path(tree, node):
    tokens = []
    while node > 0:
        tokens.insert(0, int(tree.tokens[node]))
        node = tree.parents[node]
    return tokens


def bad_drafter(text):
    """Guesses that have nothing to do with the model."""
    rng = np.random.default_rng(len(text))
    return kvctl.TokenTree([text[-1], *rng.integers(0, 12, 5)], [-1, 0, 0, 0, 1, 4])


SAMPLINGS = [
    kvctl.Sampling(temperature=0.8),
    kvctl.Sampling(top_p=0.9, top_k=8, min_p=0.02),
    kvctl.Sampling(repetition_penalty=1.3, frequency_penalty=0.2, logit_bias={3: 1.0}),
]


@pytest.mark.parametrize("rule", ["target_only", "coupled"])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["plain", "cut", "penalties"])
def test_speculative_output_is_plain_output(rule, sampling):
    model = Model()
    noise = "gumbel" if rule == "coupled" else "uniform"
    seeds = 1000 if os.environ.get("KVCTL_LONG") == "1" else 100
    for seed in range(seeds):
        plain = decode_plainly(model, [1, 2, 3], 8, seed, noise, sampling)
        speculative = decode_speculatively(
            model, [1, 2, 3], 8, seed, rule, "deterministic", sampling, bad_drafter
        )
        assert speculative == plain


def test_coupled_drafts_of_the_same_model_are_always_accepted():
    model = Model()
    for seed in range(50):

        def drafter(text, seed=seed):
            tokens = list(text[-1:])
            for depth in range(1, 4):
                row = model(*text, *tokens[1:])[None]
                draw = draft_sample(
                    row,
                    how="coupled",
                    seed=seed,
                    request_ids=[5],
                    root_positions=[len(text) - 1],
                    first_nodes=depth,
                )
                tokens.append(int(draw.tokens[0, 0]))
            return kvctl.TokenTree.chain(tokens)

        text = [1, 2]
        logits = np.stack([model(*text, *path(drafter(text), i)) for i in range(4)])
        result = kvctl.verify(
            logits,
            drafter(text),
            rule="coupled",
            drawn="coupled",
            seed=seed,
            request_ids=[5],
            root_positions=[1],
        )
        assert result.num_accepted.tolist() == [3]
        assert result.tokens[0] == decode_plainly(model, text, 4, seed, "gumbel", None)

"""Processors of target logits, against NumPy; and logits that are not numbers."""

import numpy as np
import pytest

import kvctl
from kvctl._ffi import functions as ffi
from kvctl.draft import sample as draft_sample
from kvctl.verification.flatten import RULES
from kvctl.verification.request import set_target, set_trees

VOCAB = 300
ROOT = kvctl.TokenTree.chain([0])


def make_logits(seed=0, scale=2.0):
    return (np.random.default_rng(seed).normal(size=VOCAB) * scale).astype(np.float32)


def processed(logits, s, counts=None, allowed=None):
    """The distribution, the slow way and in float64."""
    x = logits.astype(np.float64)
    for token, bias in s.logit_bias.items():
        x[token] += bias
    for token, count in (counts or {}).items():
        x[token] = (
            x[token] / s.repetition_penalty if x[token] > 0 else x[token] * s.repetition_penalty
        )
        x[token] -= s.presence_penalty + s.frequency_penalty * count
    if allowed is not None:
        x[~allowed] = -np.inf
    x = np.exp((x - x.max()) / s.temperature)
    order = np.argsort(-x, kind="stable")
    if s.top_k:
        x[order[s.top_k :]] = 0
    if s.top_p < 1:
        mass = np.cumsum(x[order]) / x.sum()
        x[order[np.searchsorted(mass, s.top_p) + 1 :]] = 0
    x[x < s.min_p * x.max()] = 0
    return x / x.sum()


def distribution(logits, sampling):
    """The shipped distribution of one row."""
    draw = draft_sample(logits[None], how="deterministic", sampling=sampling, dtype=np.float64)
    return draw.probs[0]


SAMPLINGS = [
    kvctl.Sampling(),
    kvctl.Sampling(temperature=0.3),
    kvctl.Sampling(temperature=2.5),
    kvctl.Sampling(top_k=1),
    kvctl.Sampling(top_k=17),
    kvctl.Sampling(top_p=0.5),
    kvctl.Sampling(top_p=1e-9),
    kvctl.Sampling(top_p=0.999),
    kvctl.Sampling(min_p=0.1),
    kvctl.Sampling(temperature=0.7, top_k=40, top_p=0.8, min_p=0.05),
    kvctl.Sampling(logit_bias={3: 5.0, 7: -100.0, 9: float("-inf")}),
]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_distribution_is_that_of_numpy(sampling):
    for seed in range(5):
        logits = make_logits(seed)
        got, expected = distribution(logits, sampling), processed(logits, sampling)
        assert (got[expected > 1e-12] > 0).all() and (got[expected == 0] == 0).all()
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-13)


def test_ties_at_the_edge_go_to_the_lower_id():
    logits = np.zeros(VOCAB, np.float32)
    np.testing.assert_array_equal(
        np.flatnonzero(distribution(logits, kvctl.Sampling(top_k=3))), [0, 1, 2]
    )
    np.testing.assert_array_equal(
        np.flatnonzero(distribution(logits, kvctl.Sampling(top_p=4.5 / VOCAB))), [0, 1, 2, 3, 4]
    )


def test_top_p_is_taken_of_what_top_k_left():
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    both = distribution(logits, kvctl.Sampling(top_k=2, top_p=0.57))
    np.testing.assert_allclose(both, [1, 0, 0, 0])  # .4 / .7 = .571
    np.testing.assert_allclose(
        distribution(logits, kvctl.Sampling(top_p=0.57)), [4 / 7, 3 / 7, 0, 0], rtol=1e-6
    )


def first_token_distribution(logits, sampling, trials=20000, **more):
    rows = np.tile(logits, (trials, 1))
    tokens = kvctl.sample(
        rows, sampling=sampling, request_ids=range(trials), positions=[3] * trials, **more
    )
    return np.bincount(tokens, minlength=len(logits)) / trials


@pytest.mark.parametrize("sampling", SAMPLINGS[:4] + SAMPLINGS[5:6] + SAMPLINGS[9:])
@pytest.mark.parametrize("noise", ["uniform", "gumbel"])
def test_samples_follow_the_distribution(sampling, noise):
    logits = make_logits(1, 3.0)
    expected = processed(logits, sampling)
    found = first_token_distribution(logits, sampling, noise=noise)
    assert np.abs(found - expected).max() < 6 * 0.5 / np.sqrt(20000)
    assert not found[expected == 0].any()


def test_penalties_count_history_root_and_path():
    sampling = kvctl.Sampling(
        temperature=0, repetition_penalty=1.5, presence_penalty=0.25, frequency_penalty=0.125
    )
    # Token 2 leads by what two sightings cost, so it is chosen after one and not after two.
    tree = kvctl.TokenTree.chain([1, 2, 2])
    logits = np.zeros((3, VOCAB), np.float32)
    for counted, row in [({1: 2, 4: 1}, 0), ({1: 2, 4: 1, 2: 1}, 1), ({1: 2, 4: 1, 2: 2}, 2)]:
        logits[row] = make_logits(row)
        x = logits[row].astype(np.float64)
        for token, n in counted.items():
            x[token] = x[token] / 1.5 if x[token] > 0 else x[token] * 1.5
            x[token] -= 0.25 + 0.125 * n
        rest = np.delete(x, 2).max()
        # Make token 2 win by a hair in the first two rows under exactly these counts.
        n = counted.get(2, 0)
        target = rest + 1e-3 if row < 2 else rest - 1e-3
        logits[row, 2] = (target + (0.25 + 0.125 * n if n else 0)) * (1.5 if n else 1.0)
    result = kvctl.verify(
        logits, tree, rule="greedy", drawn="deterministic", sampling=sampling, history=[[1, 4]]
    )
    assert result.num_accepted.tolist() == [2] and result.bonus[0] != 2
    without = kvctl.verify(logits, tree, rule="greedy", drawn="deterministic")
    assert without.bonus[0] == 2


def pack(allowed):
    words = np.zeros((len(allowed), (VOCAB + 31) // 32), np.uint32)
    for row, token in zip(*np.nonzero(allowed), strict=True):
        words[row, token // 32] |= np.uint32(1 << (token % 32))
    return words.view(np.int32)


def test_bitmask_has_one_row_per_node():
    tree = kvctl.TokenTree.chain([1, 5])
    logits = np.stack([make_logits(0), make_logits(1)])
    allowed = np.zeros((2, VOCAB), bool)
    allowed[0, [5, 9]] = allowed[1, 299] = True
    logits[0, 5] = 20
    result = kvctl.verify(logits, tree, rule="greedy", drawn="deterministic", bitmask=pack(allowed))
    assert result.tokens == [[5, 299]]
    random = np.random.default_rng(0).random((1, VOCAB)) < 0.5
    found = first_token_distribution(
        logits[1], kvctl.Sampling(), bitmask=np.tile(pack(random), (20000, 1))
    )
    expected = processed(logits[1], kvctl.Sampling(), allowed=random[0])
    assert np.abs(found - expected).max() < 6 * 0.5 / np.sqrt(20000)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_is_never_chosen_and_plus_infinity_always(temperature):
    sampling = kvctl.Sampling(temperature=temperature)
    logits = make_logits()
    logits[::2] = np.nan
    assert first_token_distribution(logits, sampling, 500)[::2].sum() == 0
    logits[[7, 11]] = np.inf
    chosen = np.flatnonzero(first_token_distribution(logits, sampling, 500))
    assert chosen.tolist() == ([7] if temperature == 0 else [7, 11])
    with pytest.raises(ValueError, match="no token is left"):
        kvctl.sample(np.full((1, VOCAB), -np.inf, np.float32), positions=[0])


def test_masks_of_large_finite_numbers():
    logits = np.full(VOCAB, -3.4e38, np.float32)
    logits[5] = 1
    assert first_token_distribution(logits, kvctl.Sampling(), 50)[5] == 1
    logits[5] = -3.4e38  # all equal: uniform
    assert (first_token_distribution(logits, kvctl.Sampling(), 500) > 0).sum() > 100


def test_tiny_temperature_is_greedy_but_for_ties():
    logits = make_logits()
    for temperature in (1e-5, 1e-30, 1e-300):
        found = first_token_distribution(logits, kvctl.Sampling(temperature=temperature), 20)
        assert found[logits.argmax()] == 1


def test_sampling_per_request():
    logits = np.stack([make_logits()] * 3)
    samplings = [
        kvctl.Sampling(temperature=0),
        kvctl.Sampling(temperature=0, logit_bias={8: 99}),
        kvctl.Sampling(temperature=0, stop_tokens=[1]),
    ]
    tokens = kvctl.sample(logits, sampling=samplings)
    assert tokens.tolist() == [logits[0].argmax(), 8, logits[0].argmax()]


def test_large_vocabulary_agrees_between_the_fused_and_the_general_pass():
    """top_k=V-1 takes the general path; it and the fused one must draw the same token."""
    vocab = 40_000
    rows = np.random.default_rng(3).normal(size=(200, vocab)).astype(np.float32) * 4
    base = dict(request_ids=range(200), positions=[0] * 200)
    fused = kvctl.sample(rows, **base)
    general = kvctl.sample(rows, sampling=kvctl.Sampling(top_k=vocab - 1), **base)
    assert (fused == general).mean() > 0.99  # block exponents move a boundary by 2^-44 at most
    distribution_ = np.exp(rows[0].astype(np.float64) - rows[0].max())
    assert len(np.unique(fused)) > 20 and distribution_.sum() > 1


def test_probabilities_are_used_as_they_are():
    p = np.array([[0.2, 0.0, 0.8]])
    counts = np.bincount(
        kvctl.sample(
            np.tile(p, (5000, 1)), probabilities=True, request_ids=range(5000), positions=[0] * 5000
        ),
        minlength=3,
    )
    assert counts[1] == 0 and abs(counts[2] / 5000 - 0.8) < 0.04
    with pytest.raises(ValueError, match="used as they are"):
        kvctl.sample(p, probabilities=True, positions=[0], sampling=kvctl.Sampling(top_p=0.5))
    assert kvctl.sample(p, probabilities=True, sampling=kvctl.Sampling(temperature=0)).tolist() == [
        2
    ]


def test_draft_distributions_are_the_distributions_drawn_from():
    logits = np.tile(make_logits(4, 3.0), (4000, 1))
    draw = draft_sample(
        logits,
        how="without_replacement",
        n=3,
        request_ids=range(4000),
        root_positions=1,
        sampling=kvctl.Sampling(top_k=5),
    )
    assert draw.probs.dtype == np.float32 and (draw.probs[0] > 0).sum() == 5
    np.testing.assert_allclose(draw.probs.sum(axis=1), 1, rtol=1e-6)
    assert (np.sort(draw.tokens, axis=1)[:, 1:] != np.sort(draw.tokens, axis=1)[:, :-1]).all()
    first = np.bincount(draw.tokens[:, 0], minlength=VOCAB) / 4000
    assert np.abs(first - draw.probs[0]).max() < 0.05
    few = draft_sample(
        logits[:2],
        how="without_replacement",
        n=4,
        request_ids=[0, 1],
        root_positions=1,
        sampling=kvctl.Sampling(top_k=2),
    )
    assert (few.tokens[:, 2:] == -1).all() and (few.tokens[:, :2] >= 0).all()
    best = draft_sample(logits[:1], how="deterministic", n=3).tokens[0]
    np.testing.assert_array_equal(best, np.argsort(-logits[0], kind="stable")[:3])


def test_rules_by_number_match_the_names():
    request = ffi.verify.new_request()
    set_trees(request, [kvctl.TokenTree.chain([0])], "deterministic")
    set_target(request, np.zeros((1, 4), np.float32), [kvctl.Sampling()])
    request.rule = len(RULES)
    with pytest.raises(ValueError, match="rule must be in"):
        ffi.verify.run(request, np.empty(7, np.int32), None)

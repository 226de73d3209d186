"""The fused kernels and the real random numbers, at a vocabulary where binning is not needed."""

import os

import numpy as np
import pytest

from kvctl.testing.distribution import acceptance_of, chi_square, trials_needed
from verify_simulation import verify_stars

ALPHA = 1e-9
VOCAB = 16
P = np.arange(1, VOCAB + 1) ** -1.2
P /= P.sum()
Q = P[::-1].copy()
# A drafter that drops duplicates takes 150k trials to be seen.
TRIALS = 400_000 if os.environ.get("KVCTL_LONG") == "1" else 200_000


def p_value(tokens, distribution=P):
    return chi_square(np.bincount(tokens, minlength=VOCAB), distribution).p_value


@pytest.mark.parametrize(
    ("rule", "how", "siblings"),
    [
        ("target_only", "independent", 1),
        ("target_only", "coupled", 2),
        ("coupled", "coupled", 1),
        ("coupled", "deterministic", 2),
        ("token_wise", "independent", 1),
        ("block", "independent", 1),
        ("recursive", "independent", 3),
        ("recursive", "without_replacement", 3),
        ("traversal", "independent", 3),
        ("traversal", "without_replacement", 3),
        ("traversal", "deterministic", 2),
        ("best_of_k", "independent", 3),
    ],
)
def test_emitted_distribution(rule, how, siblings):
    tokens, accepted = verify_stars(P, Q, rule=rule, how=how, siblings=siblings, trials=TRIALS)
    assert p_value(tokens) > ALPHA
    if rule == "token_wise":
        rate, expected = accepted.mean(), acceptance_of(P, Q)
        assert abs(rate - expected) < 6 * np.sqrt(expected * (1 - expected) / TRIALS)


def test_wrong_sibling_rule_is_seen():
    tokens, _ = verify_stars(
        P,
        Q,
        rule="recursive",
        how="independent",
        siblings=3,
        trials=TRIALS,
        drawn="without_replacement",
    )
    assert p_value(tokens) < ALPHA


def test_dropped_duplicates_are_seen():
    """Duplicates moved out of the way, as a drafter that wants distinct siblings would."""

    def told(tokens, distribution):
        distinct = tokens.copy()
        twin = distinct[:, 1] == distinct[:, 0]
        distinct[twin, 1] = (distinct[twin, 1] + 1) % VOCAB
        return distinct, distribution

    tokens, _ = verify_stars(
        P, Q, rule="recursive", how="independent", siblings=2, trials=TRIALS, told=told
    )
    assert p_value(tokens) < ALPHA


def test_misrecorded_top_p_is_seen():
    kept = np.where(np.arange(VOCAB) >= 4, Q, 0)

    def told(_tokens, distribution):
        return _tokens, np.tile(Q.astype(np.float32), (len(distribution), 1))

    tokens, _ = verify_stars(
        P,
        np.maximum(kept / kept.sum(), 1e-30),
        rule="token_wise",
        how="independent",
        siblings=1,
        trials=20_000,
        told=told,
    )
    assert p_value(tokens) < ALPHA


def test_power_analysis_predicts_what_is_seen():
    """A small bias is seen with about the predicted number of trials, not with a tenth."""
    biased = P.copy()
    biased[[0, 1]] += [0.02, -0.02]
    n = trials_needed(P, biased, alpha=1e-6, power=0.99)
    rng = np.random.default_rng(5)
    seen = [p_value(rng.choice(VOCAB, size=n, p=biased)) < 1e-6 for _ in range(40)]
    missed = [p_value(rng.choice(VOCAB, size=n // 10, p=biased)) < 1e-6 for _ in range(40)]
    assert np.mean(seen) > 0.9 and np.mean(missed) < 0.1

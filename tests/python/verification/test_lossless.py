"""Exact distributions through the public tools, and every known bias of the field, by name.

One file, since right rules and biased controls share their models.
"""

import numpy as np
import pytest

import kvctl
from kvctl.testing.distribution import (
    Draft,
    chi_square,
    expected_emitted,
    joint_distribution,
    path_tokens,
    tree_drafter,
)

P = np.array([0.45, 0.35, 0.2])
Q = np.array([0.1, 0.5, 0.4])
PATHS = (-1, 0, 0, 1, 2)
BIASED = 0.01


def p_of(prefix):
    """A target whose distribution turns with the prefix."""
    return np.roll(P, sum(prefix) + len(prefix))


def q_of(prefix):
    return np.roll(Q, 2 * sum(prefix) + len(prefix))


LOSSLESS = [
    ("target_only", "independent", PATHS),
    ("target_only", "without_replacement", PATHS),
    ("token_wise", "independent", (-1, 0, 1, 2)),
    ("block", "independent", (-1, 0, 1, 2)),
    ("recursive", "independent", PATHS),
    ("recursive", "without_replacement", PATHS),
    ("traversal", "independent", PATHS),
    ("traversal", "without_replacement", PATHS),
    ("best_of_k", "independent", PATHS),
]


@pytest.mark.parametrize(("rule", "how", "shape"), LOSSLESS)
def test_lossless(rule, how, shape):
    result = joint_distribution(tree_drafter(shape, q_of, how), p_of, rule=rule)
    assert result.max_difference < 1e-12
    assert abs(result.distribution.sum() - 1) < 1e-12


@pytest.mark.parametrize("rule", ["target_only", "recursive", "traversal"])
def test_lossless_when_deterministic(rule):
    result = joint_distribution(tree_drafter(PATHS, q_of, "deterministic"), p_of, rule=rule)
    assert result.max_difference < 1e-12


def test_mixed_drafters_in_one_tree():
    def draft(rng):
        first = rng.categorical(q_of(()))
        guess = 2  # by a table, whatever was drawn
        return Draft(
            kvctl.TokenTree([0, first, guess], [-1, 0, 0]),
            ["deterministic", "independent", "deterministic"],
            {0: q_of(())},
        )

    for rule in ("recursive", "traversal"):
        assert joint_distribution(draft, p_of, rule=rule).max_difference < 1e-12


def test_token_wise_acceptance_is_one_minus_total_variation():
    shape = (-1, 0, 1, 2)
    result = joint_distribution(
        tree_drafter(shape, lambda _: Q, "independent"), lambda _: P, rule="token_wise"
    )
    assert result.mean_emitted == pytest.approx(expected_emitted(1 - 0.35, 3), abs=1e-12)


def test_mean_emitted_is_ordered():
    def mean(rule, how, shape):
        return joint_distribution(tree_drafter(shape, q_of, how), p_of, rule=rule).mean_emitted

    chain = (-1, 0, 1, 2)
    assert mean("block", "independent", chain) > mean("token_wise", "independent", chain)
    for how in ("independent", "without_replacement"):
        traversal, recursive, target_only = (
            mean(rule, how, PATHS) for rule in ("traversal", "recursive", "target_only")
        )
        assert traversal >= recursive - 1e-12 and recursive >= target_only - 1e-12
        assert traversal > target_only


# --- controls: each is a mistake that engines have made, and must be seen -------------------------

# A pair whose residual holds two tokens: one alone would hide that its proportions are wrong.
P2 = np.array([0.4, 0.35, 0.25])
Q2 = np.array([0.15, 0.2, 0.65])


def siblings(rng, n, distribution=Q2):
    return [rng.categorical(distribution) for _ in range(n)]


def distinct(rng, n, distribution=Q2):
    distribution, tokens = np.array(distribution), []
    for _ in range(n):
        tokens.append(rng.categorical(distribution))
        distribution[tokens[-1]] = 0
    return tokens


def star(tokens, drawn, distribution=Q2):
    tree = kvctl.TokenTree([0, *tokens], [-1] + [0] * len(tokens))
    return Draft(tree, drawn, {0: distribution})


def by_q(tokens):
    return sorted(tokens, key=lambda t: -Q2[t])


def dropped_duplicate_siblings(rng):
    return star(list(dict.fromkeys(siblings(rng, 3))), "independent")


def independent_rule_on_siblings_without_replacement(rng):
    return star(distinct(rng, 2), "independent")


def independent_rule_on_argmax_siblings_with_soft_q(rng):
    return star([2, 1], "independent")


def without_replacement_rule_on_resorted_siblings(rng):
    return star(by_q(distinct(rng, 2))[::-1], "without_replacement")


def independent_siblings_resorted(rng):
    return star(by_q(siblings(rng, 2))[::-1], "independent")


def best_two_of_three_by_q(rng):
    return star(by_q(siblings(rng, 3))[:2], "independent")


def chain_token_dropped_because_its_own_q_is_low(rng):
    token = rng.categorical(Q2)
    tokens = [] if Q2[token] < 0.3 else [token]
    return star(tokens, "independent")


def drawn_after_top_p_but_q_recorded_before(rng):
    return star([rng.categorical([0, 0.2, 0.65])], "independent")


CONTROLS = [
    dropped_duplicate_siblings,
    independent_rule_on_siblings_without_replacement,
    independent_rule_on_argmax_siblings_with_soft_q,
    without_replacement_rule_on_resorted_siblings,
    independent_siblings_resorted,
    best_two_of_three_by_q,
    chain_token_dropped_because_its_own_q_is_low,
    drawn_after_top_p_but_q_recorded_before,
]


@pytest.mark.parametrize("rule", ["recursive", "traversal"])
@pytest.mark.parametrize("drafter", CONTROLS)
def test_control_is_seen(drafter, rule):
    assert joint_distribution(drafter, lambda _: P2, rule=rule, length=1).total_variation > BIASED


@pytest.mark.parametrize("drafter", CONTROLS)
def test_control_is_harmless_when_declared_deterministic(drafter):
    def declared(rng):
        draft = drafter(rng)
        return Draft(draft.tree, "deterministic", {})

    for rule in ("recursive", "traversal", "target_only"):
        assert (
            joint_distribution(declared, lambda _: P2, rule=rule, length=2).max_difference < 1e-12
        )


def test_stopping_after_a_token_of_low_q_is_exact():
    def draft(rng):
        tokens = [rng.categorical(Q)]
        if Q[tokens[0]] >= 0.3:
            tokens.append(rng.categorical(q_of((tokens[0],))))
        tree = kvctl.TokenTree.chain([0, *tokens])
        return Draft(tree, "independent", {0: Q, 1: q_of((tokens[0],))})

    for rule in ("token_wise", "block"):
        assert joint_distribution(draft, p_of, rule=rule).max_difference < 1e-12


def test_independent_rule_is_refused_on_coupled_drafts():
    with pytest.raises(ValueError, match="biased"):
        joint_distribution(lambda rng: star([1], "coupled"), lambda _: P2, rule="recursive")


def test_chain_rule_on_a_tree_is_biased_and_refused():
    def first_child_only(tree, rng):
        """Token-wise verification that takes a tree for a chain: siblings as successive tokens."""
        for child in (1, 2):
            token = int(tree.tree.tokens[child])
            if not rng.bernoulli(min(1, tree.p(0)[token] / tree.distribution_of(child)[token])):
                continue  # and forgets the residual
            return child, rng.categorical(tree.p(child))
        return 0, rng.categorical(tree.p(0))

    drafter = tree_drafter((-1, 0, 0), lambda _: Q, "independent")
    assert joint_distribution(drafter, lambda _: P, rule=first_child_only).total_variation > BIASED
    with pytest.raises(ValueError, match="is for chains"):
        joint_distribution(drafter, lambda _: P, rule="token_wise")


def test_a_rule_of_your_own_agrees_with_the_shipped_one():
    def recursive(tree, rng):
        v = 0
        while True:
            r = tree.p(v)
            for child in tree.children(v):
                token, distribution = int(tree.tree.tokens[child]), tree.distribution_of(child)
                if rng.bernoulli(min(1.0, r[token] / distribution[token])):
                    v = child
                    break
                left = np.maximum(r - distribution, 0)
                r = left / left.sum() if left.sum() > 0 else r
            else:
                return v, rng.categorical(r)

    drafter = tree_drafter(PATHS, q_of, "without_replacement")
    own, shipped = (
        joint_distribution(drafter, p_of, rule=rule) for rule in (recursive, "recursive")
    )
    assert np.abs(own.distribution - shipped.distribution).max() < 1e-12
    assert own.mean_emitted == pytest.approx(shipped.mean_emitted)


def test_shared_uniform_for_acceptance_and_residual():
    """One uniform decides acceptance and, rejected, is used again by the inverse CDF."""
    rng = np.random.default_rng(1)
    trials = 100_000
    u = rng.random(trials)
    p, q = np.array([0.3, 0.3, 0.4]), np.array([0.1, 0.1, 0.8])
    residual = np.maximum(p - q, 0) / np.maximum(p - q, 0).sum()
    drafted = rng.choice(3, size=trials, p=q)
    accept = u < np.minimum(1, p / q)[drafted]
    shared = np.where(accept, drafted, np.searchsorted(residual.cumsum(), u, side="right"))
    fresh_u = rng.random(trials)
    fresh = np.where(accept, drafted, np.searchsorted(residual.cumsum(), fresh_u, side="right"))
    assert chi_square(np.bincount(shared, minlength=3), p).p_value < 1e-9
    assert chi_square(np.bincount(fresh, minlength=3), p).p_value > 1e-9


def test_shared_gumbel_noise_between_draft_and_residual():
    rng = np.random.default_rng(2)
    p, q = np.array([0.3, 0.3, 0.4]), np.array([0.1, 0.2, 0.7])
    trials = 100_000
    noise = rng.gumbel(size=(trials, 3))
    drafted = (np.log(q) + noise).argmax(axis=1)
    accept = rng.random(trials) < np.minimum(1, p / q)[drafted]
    with np.errstate(divide="ignore"):
        residual = np.log(np.maximum(p - q, 0))
    for shared in (True, False):
        again = noise if shared else rng.gumbel(size=(trials, 3))
        emitted = np.where(accept, drafted, (residual + again).argmax(axis=1))
        p_value = chi_square(np.bincount(emitted, minlength=3), p).p_value
        assert (p_value < 1e-9) == shared


def test_top_p_applied_twice():
    logits = np.log([[0.5, 0.3, 0.2]]).astype(np.float32)
    root = kvctl.TokenTree.chain([0])
    once = kvctl.Sampling(top_p=0.75)
    tokens = {
        kvctl.verify(
            logits,
            root,
            rule="target_only",
            drawn="deterministic",
            sampling=once,
            root_positions=[i],
        ).bonus[0]
        for i in range(200)
    }
    assert tokens == {0, 1}
    processed = np.log([[0.625, 0.375, 1e-30]]).astype(np.float32)
    twice = kvctl.Sampling(top_p=0.6)
    assert {
        kvctl.verify(
            processed,
            root,
            rule="target_only",
            drawn="deterministic",
            sampling=twice,
            root_positions=[i],
        ).bonus[0]
        for i in range(200)
    } == {0}


def test_typical_says_that_it_is_lossy_and_is():
    drafter = tree_drafter((-1, 0, 1), lambda _: Q, "independent")
    result = joint_distribution(drafter, lambda _: P, rule="typical")
    assert result.total_variation > BIASED
    call = dict(rule="typical", drawn="independent", root_positions=[0])
    assert not kvctl.verify(
        np.zeros((1, 3), np.float32), kvctl.TokenTree.chain([0]), **call
    ).lossless


def test_path_tokens():
    assert path_tokens(kvctl.TokenTree([9, 5, 7], [-1, 0, 1]), 2) == (5, 7)

"""What lies behind a drafted stop token is never read, and the text before it does not change."""

import numpy as np
import pytest

import kvctl
from kvctl.testing.distribution import path_tokens, tree_drafter
from kvctl.verification import BranchingRng, enumerate_outcomes

STOP = 2
RULES = ["greedy", "target_only", "coupled", "token_wise", "block", "recursive", "traversal"]
P = np.array([0.45, 0.35, 0.2])
Q = np.array([0.1, 0.5, 0.4])
PATHS = (-1, 0, 0, 1, 2)
CHAIN = (-1, 0, 1, 2)


def call(rule):
    """How a rule verifies a chain, at temperature 0 where it has to."""
    sampling = kvctl.Sampling(temperature=0.0 if rule == "greedy" else 1.0, stop_tokens=[STOP])
    return dict(rule=rule, sampling=sampling, seed=1, request_ids=[0], root_positions=[0])


@pytest.mark.parametrize("rule", [*RULES, "typical"])
def test_a_mask_with_nothing_behind_the_stop(rule):
    logits = np.zeros((3, 32), np.float32)
    logits[0, STOP] = 90
    bitmask = np.array([[-1], [0], [0]], np.int32)
    chain = kvctl.TokenTree.chain([5, STOP, 7])
    result = kvctl.verify(logits, chain, drawn="deterministic", bitmask=bitmask, **call(rule))
    assert result.tokens == [[STOP]]
    assert result.finished.tolist() == [True] and result.bonus.tolist() == [-1]
    assert result.accepted_nodes == [[1]] and result.kept == [[0, 1]]


def test_paths_with_nothing_behind_the_stop():
    logits = np.full((5, 8), -np.inf, np.float32)
    logits[0, STOP] = 0
    tree = kvctl.TokenTree([5, STOP, STOP, 7, 6], [-1, 0, 0, 1, 2])
    draft = np.full((5, 8), 1 / 8)
    result = kvctl.verify(
        logits, tree, drawn="independent", draft_probs=draft, log_probs=True, **call("best_of_k")
    )
    assert result.tokens == [[STOP]] and result.log_probs[0].tolist() == [0.0]


def p_of(prefix):
    """A target whose distribution turns with the prefix; nothing but stops follow a stop."""
    if STOP in prefix:
        return np.eye(3)[STOP]
    return np.roll(P, sum(prefix) + len(prefix))


def q_of(prefix):
    return np.roll(Q, 2 * sum(prefix) + len(prefix))


def add(distribution, prefix, mass):
    """Add mass to the continuations of a text as the target continues it."""
    if len(prefix) == distribution.ndim:
        distribution[prefix] += mass
        return
    for token, share in enumerate(p_of(prefix)):
        if share > 0:
            add(distribution, (*prefix, token), mass * share)


@pytest.mark.parametrize(
    ("rule", "how", "shape"),
    [
        ("target_only", "independent", PATHS),
        ("token_wise", "independent", CHAIN),
        ("block", "independent", CHAIN),
        ("recursive", "independent", PATHS),
        ("recursive", "without_replacement", PATHS),
        ("traversal", "independent", PATHS),
        ("traversal", "without_replacement", PATHS),
        ("traversal", "deterministic", PATHS),
        ("best_of_k", "independent", PATHS),
    ],
)
def test_the_text_up_to_the_stop_follows_the_target(rule, how, shape):
    found, expected = np.zeros((3,) * 4), np.zeros((3,) * 4)
    add(expected, (), 1.0)
    for probability, draft in BranchingRng().branches(tree_drafter(shape, q_of, how)):
        prefixes = [path_tokens(draft.tree, node) for node in range(len(draft.tree))]
        # Rows behind a stop are no distributions: reading one would be an error.
        target = [np.zeros(3) if STOP in prefix else p_of(prefix) for prefix in prefixes]
        rows = [draft.distributions.get(node, np.zeros(3)) for node in range(len(prefixes))]
        (outcomes,) = enumerate_outcomes(
            target,
            draft.tree,
            rule=rule,
            drawn=[draft.drawn],
            draft_probs=rows,
            stop_tokens=[STOP],
        )
        for outcome in outcomes:
            text = prefixes[outcome.node]
            assert STOP not in text[:-1]
            assert (outcome.bonus == -1) == (STOP in text)
            text += () if STOP in text else (outcome.bonus,)
            add(found, text, probability * outcome.probability)
    np.testing.assert_allclose(found, expected, atol=1e-12)
